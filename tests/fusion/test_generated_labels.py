"""Label sets that are generated: each teacher's labels find the student's, a slip is refused, and nothing is guessed."""

import unicodedata

import pytest
from generators import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_distill.errors import DataError
from hf_distill.fusion.alignment import LabelMap, alike_names, refuse_misspelt, unclear_names

letters = st.characters(categories=["Lu", "Ll", "Lo"], codec="utf-8", max_codepoint=0x24F)
words = st.text(letters, min_size=3, max_size=9)
names = st.one_of(
    words,
    st.lists(words, min_size=2, max_size=2).map(" ".join),
    st.integers(-99, 99).map(str),
    st.tuples(words, st.sampled_from(["+", "#", "*", "-", "<", " 1", " 2"])).map("".join),
    st.text(st.characters(codec="utf-8", categories=["L", "N", "S", "P", "M"]), min_size=1, max_size=6),
)
sets = st.lists(names, min_size=2, max_size=6, unique=True)


def told_apart(labels):
    return not unclear_names(labels) and alike_names(labels) is None


@cases(40)
@given(labels=sets, data=st.data())
def test_any_order_and_spelling_is_matched_by_name(labels, data):
    assume(told_apart(labels))
    order = data.draw(st.permutations(range(len(labels))))
    spell = data.draw(
        st.sampled_from(
            [str, lambda name: unicodedata.normalize("NFD", name), lambda name: f" {name} ",
             lambda name: name.replace(" ", "_") if name.replace(" ", "").isalpha() else name,
             lambda name: name.upper() if name.upper().casefold() == name.casefold() else name]
        )
    )  # fmt: skip
    theirs = [spell(labels[i]) for i in order]
    assume(told_apart(theirs))
    found = LabelMap.match(theirs, labels, teacher="t")
    assert [order[column] for column in found.columns] == list(range(len(labels)))
    refuse_misspelt([found], [()])


@cases(40)
@given(labels=st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=6, max_size=10), min_size=3, max_size=5, unique=True),
       data=st.data())  # fmt: skip
def test_a_slip_in_one_name_is_refused_with_both(labels, data):
    assume(told_apart(labels))
    number, at = data.draw(st.integers(0, len(labels) - 1)), data.draw(st.integers(1, 4))
    name = labels[number]
    slip = data.draw(st.sampled_from(["left out", "swapped", "doubled"]))
    wrong = {
        "left out": name[:at] + name[at + 1 :],
        "swapped": name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        "doubled": name[:at] + name[at] + name[at:],
    }[slip]
    assume(wrong not in labels and wrong != name)
    theirs = [wrong if i == number else label for i, label in enumerate(labels)]
    with pytest.raises(DataError) as refused:
        refuse_misspelt([LabelMap.match(theirs, labels, teacher="t")], [()])
    assert repr(name) in str(refused.value) and repr(wrong) in str(refused.value)


@cases(40)
@given(labels=sets, sign=st.sampled_from(["+", "#", "<", ">", "*", "\u0301"]), data=st.data())
def test_a_sign_more_is_another_label(labels, sign, data):
    """Never taken for the one without it, whatever else a teacher has."""
    name = data.draw(st.sampled_from(labels))
    assume(told_apart(labels) and name.strip())
    other = name + sign
    assume(unicodedata.normalize("NFC", other) not in {unicodedata.normalize("NFC", n) for n in labels})
    assume(told_apart([*labels, other]))
    theirs = [other if label == name else label for label in labels]
    try:
        found = LabelMap.match(theirs, labels, teacher="t")
    except DataError:
        return
    assert found.columns[labels.index(name)] is None or theirs[found.columns[labels.index(name)]] != other
