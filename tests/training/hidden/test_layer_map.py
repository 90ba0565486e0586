"""Layer maps against the papers' own, evenness, and every refusal."""

from __future__ import annotations

import pytest

from hf_distill.errors import ConfigurationError
from hf_distill.training.hidden.layer_map import LAYER_MAPS, LayerMap


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "pairs"),
    [
        ("last", 6, 12, ((6, 12),)),
        ("last", 12, 6, ((12, 6),)),
        ("uniform", 1, 12, ((1, 12),)),
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),  # TinyBERT's
        ("uniform", 2, 3, ((1, 2), (2, 3))),  # 1.5 goes up
        ("uniform", 4, 10, ((1, 3), (2, 5), (3, 8), (4, 10))),  # 2.5 goes up as well
        ("uniform", 5, 12, ((1, 2), (2, 5), (3, 7), (4, 10), (5, 12))),
        ("skip", 6, 12, ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))),  # PKD-Skip's
        ("skip", 3, 12, ((1, 4), (2, 8))),  # PKD-Skip's
        ("skip", 5, 12, ((1, 2), (2, 4), (3, 6), (4, 8))),
        ("skip", 4, 4, ((1, 1), (2, 2), (3, 3))),
    ],
)
def test_maps(spec, student, teacher, pairs):
    assert LayerMap.of(spec, student, teacher).pairs == pairs


@pytest.mark.parametrize("student", range(1, 13))
@pytest.mark.parametrize("teacher", [12, 13, 24])
def test_uniform_is_as_even_as_whole_numbers_allow(student, teacher):
    pairs = LayerMap.of("uniform", student, teacher).pairs
    assert [ours for ours, _ in pairs] == list(range(1, student + 1))
    theirs = [0, *(layer for _, layer in pairs)]
    steps = {after - before for before, after in zip(theirs, theirs[1:], strict=False)}
    assert theirs[-1] == teacher and min(steps) >= 1 and max(steps) - min(steps) <= 1


@pytest.mark.parametrize("spec", LAYER_MAPS)
@pytest.mark.parametrize(("student", "teacher"), [(2, 3), (6, 12), (7, 24), (5, 5)])
def test_named_maps_name_layers_that_exist_and_no_embeddings(spec, student, teacher):
    layers = LayerMap.of(spec, student, teacher)
    assert layers.student_layers and set(layers.student_layers) <= set(range(1, student + 1))
    assert set(layers.teacher_layers) <= set(range(1, teacher + 1))
    assert len(set(layers.pairs)) == len(layers.pairs)


def test_explicit_pairs_come_as_a_recipe_or_python_writes_them():
    layers = LayerMap.of([[2, 12], (1, 12), [0, 0]], 2, 12)
    assert layers.pairs == ((2, 12), (1, 12), (0, 0))
    assert layers.student_layers == (0, 1, 2) and layers.teacher_layers == (0, 12)
    assert layers == LayerMap(((2, 12), (1, 12), (0, 0))) and hash(layers) == hash(LayerMap(layers.pairs))


@pytest.mark.parametrize(
    ("spec", "depths", "message"),
    [
        ("unifrom", (2, 4), "there is no map named 'unifrom'; choose from 'last', 'uniform', 'skip'"),
        ("uniform", (6, 4), "the student has 6 and the teacher only 4"),
        ("skip", (6, 4), "the student has 6 and the teacher only 4"),
        ("skip", (1, 4), "'skip' leaves the student's last layer to the logits"),
        (
            [[3, 1]],
            (2, 4),
            r"the pair \(3, 1\) asks for layer 3 of the student, but it has 0 \(embeddings\) to 2",
        ),
        ([[1, 5]], (2, 4), "asks for layer 5 of the teacher, but it has 0"),
        ([[1, -1]], (2, 4), "asks for layer -1 of the teacher"),
        ([[1, 2, 3]], (2, 4), r"\[1, 2, 3\] is no pair"),
        ([1, 2], (2, 4), "1 is no pair"),
        (["12"], (2, 12), "'12' is no pair"),
        ([[1.0, 2]], (2, 4), r"\[1.0, 2\] is no pair"),
        ([[True, 2]], (2, 4), "is no pair"),
        ([[1, 2], (1, 2)], (2, 4), r"the pair \(1, 2\) stands twice"),
        ([], (2, 4), "there is no pair"),
    ],
)
def test_refusals_are_one_sentence_that_names_the_teacher(spec, depths, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        LayerMap.of(spec, *depths, teacher="bert-base")
    assert str(refused.value).startswith("Layer map of 'bert-base': ") and "\n" not in str(refused.value)
