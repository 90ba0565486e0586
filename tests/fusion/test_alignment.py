"""Labels are matched by name, never by place."""

from __future__ import annotations

import pytest
import torch

from hf_distill.errors import DataError
from hf_distill.fusion.alignment import LabelMap, TeacherOutputs, align, check_coverage, plan_table

NLI = ("entailment", "neutral", "contradiction")


def columns(theirs, ours=NLI):
    return LabelMap.match(theirs, ours, teacher="t").columns


def test_permutations_subsets_and_supersets():
    assert columns(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]) == (2, 1, 0)
    assert columns(["neutral", "entailment"]) == (1, 0, None)
    assert columns(["other", "neutral", "contradiction", "entailment"]) == (3, 1, 2)


def test_case_spaces_and_punctuation_are_ignored():
    assert columns(["Sci/Tech", "WORLD ", "sports"], ["world", "Sports", "sci_tech"]) == (1, 2, 0)


def test_exact_names_win_over_similar_ones():
    assert columns(["+1", "-1"], ["-1", "+1"]) == (1, 0)
    assert columns(["a b", "ab", "c"], ["ab", "c"]) == (1, 2)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (
            ["LABEL_0", "LABEL_1"],
            ("neg", "pos"),
            r'placeholders.*labels=\{"LABEL_0": "neg", "LABEL_1": "pos"\}',
        ),
        (["Neg.", "neg!", "pos"], ("neg", "pos"), r"'Neg.', 'neg!' all match the student's 'neg'"),
        (["neg", "pos"], ("Neg.", "neg!", "pos"), r"'neg' matches the student's 'Neg.', 'neg!' alike"),
        (["up", "down"], ("neg", "pos"), r"share no names .*at least two"),
        (["neg", "down"], ("neg", "pos"), r"share 1 name with"),
    ],
)
def test_refused_with_the_mapping_to_paste(theirs, ours, message):
    with pytest.raises(DataError, match=message) as error:
        LabelMap.match(theirs, ours, teacher="bert")
    assert "Teacher 'bert'" in str(error.value) and "labels={" in str(error.value)


def test_plan_names_what_is_missing_and_ignored():
    maps = [
        LabelMap.match(["neutral", "entailment"], NLI, teacher="two"),
        LabelMap.match([*NLI, "junk"], NLI, teacher="four"),
    ]
    assert maps[0].missing == ("contradiction",) and maps[1].ignored == ("junk",)
    table = plan_table(maps)
    assert "| 2 contradiction | –              | 2 'contradiction' |" in table
    assert "| (ignored)       | –              | junk" in table


def test_align_permutes_selects_and_masks():
    maps = [LabelMap.match(["c", "a"], "abc", teacher="x"), LabelMap.match("abcd", "abc", teacher="y")]
    logits = [torch.tensor([[3.0, 1.0]], dtype=torch.float16), torch.tensor([[1.0, 2.0, 3.0, 99.0]])]
    batch = align([TeacherOutputs(z) for z in logits], maps)
    assert batch.logits.tolist() == [[[1.0, -torch.inf, 3.0]], [[1.0, 2.0, 3.0]]]
    assert batch.logits.dtype == torch.float32
    assert batch.mask.tolist() == [[[True, False, True]], [[True, True, True]]]
    assert align([TeacherOutputs(logits[1])], maps[1:]).mask is None


def test_permuting_classes_and_names_changes_no_bit():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 1]
    first = align([TeacherOutputs(logits)], [LabelMap.match(NLI, NLI, teacher="t")])
    permuted = LabelMap.match([NLI[i] for i in order], NLI, teacher="t")
    assert torch.equal(first.logits, align([TeacherOutputs(logits[:, order])], [permuted]).logits)


def test_groups_without_a_shared_class_need_weights():
    apart = [LabelMap.match("ab", "abcd", teacher="x"), LabelMap.match("cd", "abcd", teacher="y")]
    with pytest.raises(
        DataError, match=r"2 groups without a shared class.*x know only \['a', 'b'\]; y know only"
    ):
        check_coverage(apart, None)
    check_coverage(apart, (0.5, 0.5))
    check_coverage([*apart, LabelMap.match("bc", "abcd", teacher="bridge")], None)
