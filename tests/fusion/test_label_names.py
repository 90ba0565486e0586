"""What counts as the same label, as nearly the same, and as another one."""

import itertools
import unicodedata

import pytest

from hf_distill.errors import DataError
from hf_distill.fusion.alignment import LabelMap, find_label, nearly, refuse_misspelt

WORDS = ("not entailment", "Économie", "sci tech", "हिंदी भाषा", "top 10")


def spellings(name):
    yield from (name.upper(), name.title(), f" {name} ", unicodedata.normalize("NFD", name))
    if name.replace(" ", "").isalpha() or " भ" in name:
        yield from (name.replace(" ", mark) for mark in ("_", "-", "", "  "))
    else:
        yield name.replace(" ", "_")


@pytest.mark.parametrize("name", WORDS)
def test_case_spaces_hyphens_and_composition_tell_nothing_apart(name):
    for spelling in spellings(name):
        assert find_label(spelling, WORDS) == WORDS.index(name), spelling


SETS = [
    ("C", "C++", "C#", "C*"),
    ("A+", "A", "A-", "A*"),
    ("-1", "1", "+1", "<1", ">1", "1.0", "10", "1_0", "1-0", "1 0", "1/0", "1%"),
    ("resume", "résumé", "resumé"),
    ("की", "का", "क"),
    ("<5", ">5", "=5", "5"),
    ("B-PER", "B+PER", "B PER+"),
]


@pytest.mark.parametrize("names", SETS)
def test_signs_and_marks_distinguish(names):
    for name in names:
        assert find_label(name, [other for other in names if other != name]) is None, name


@pytest.mark.parametrize("names", SETS)
def test_teachers_are_matched_by_the_same_rule(names):
    for theirs in itertools.islice(itertools.permutations(names), 7):
        label_map = LabelMap.match(theirs, names, teacher="t")
        assert [theirs[i] for i in label_map.columns] == list(names)


def test_composed_and_decomposed_names_are_one():
    names = ("Économie", "Santé")
    apart = [unicodedata.normalize("NFD", name) for name in reversed(names)]
    assert LabelMap.match(apart, names, teacher="t").columns == (1, 0)
    assert LabelMap.match(names, apart, teacher="t").columns == (1, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [("DSEC", "DESC"), ("NUMBER", "NUM"), ("postive", "positive"), ("entailement", "entailment"), ("neg", "negative")],
)  # fmt: skip
def test_misspellings_and_abbreviations_are_near(one, other):
    assert nearly(one, other) and nearly(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("HUM", "NUM"), ("class 1", "class 2"), ("positive", "negative"), ("relevant", "irrelevant"), ("A+", "A-"),
     ("entailment", "not_entailment"), ("1 star", "2 stars"), ("cat", "car")],
)  # fmt: skip
def test_other_words_are_not(one, other):
    assert not nearly(one, other) and not nearly(other, one)


def maps(ours, *teachers):
    return [LabelMap.match(names, ours, teacher=f"t{i}") for i, names in enumerate(teachers)]


L = ("ABBR", "DESC", "HUM", "LOC")


def test_a_name_that_a_teacher_nearly_has_is_asked_about():
    found = maps(L, ("ABBR", "DSEC", "HUM", "LOC"), L)
    with pytest.raises(
        DataError, match=r"'t0'.*lacks the student's 'DESC', but has 'DSEC'.*did you mean 'DESC'"
    ) as error:
        refuse_misspelt(found, [(), ()])
    assert 'labels={"DSEC": "DESC"}' in str(error.value)
    refuse_misspelt(found, [{"DSEC"}, ()])


def test_a_class_that_nobody_knows_while_all_have_one_that_nobody_uses_is_asked_about():
    found = maps(("ABBR", "DESC", "QUANTITY"), ("ABBR", "DESC", "VALUE"), ("value", "ABBR", "DESC"))
    with pytest.raises(DataError, match="No teacher knows the student's 'QUANTITY', but each has 'VALUE'"):
        refuse_misspelt(found, [(), ()])
    refuse_misspelt(found, [{"VALUE"}, {"value"}])


def test_subsets_and_supersets_are_fine():
    refuse_misspelt(maps(L, L[:2], L[1:], [*L, "ENTY"]), [(), (), ()])
    refuse_misspelt(maps((*L, "ENTY"), L, [*L[:3], "other"]), [(), ()])
    refuse_misspelt(maps(("a1", "b2", "new"), ["a1", "b2", "x", "y", "z"]), [()])


@pytest.mark.parametrize(
    "names", [["", "b", "c"], ["b", " ", "c"], ["b", "c", "b"], ["é", "e\u0301", "b", "c"]]
)
def test_empty_and_clashing_names_of_a_teacher(names):
    with pytest.raises(DataError, match="one of them is empty|stands more than once"):
        LabelMap.match(names, ("b", "c"), teacher="t")
