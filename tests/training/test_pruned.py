"""Pruning: the right weights and heads go, they stay gone, and the recipe's table says what that changes."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from conftest import make_bert, make_deberta, make_roberta, make_student
from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
from hf_distill.errors import ConfigurationError
from hf_distill.recipe import load_recipe
from hf_distill.students.pruning import attention_outputs, head_masks, magnitude_masks
from hf_distill.training.pruned import KeepPruned, count_nonzero, head_importance

ROOT = Path(__file__).parents[2]
LABELS = ["negative", "positive"]


def modernbert(tokenizer):
    torch.manual_seed(6)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        local_attention=8, num_labels=2, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return ModernBertForSequenceClassification(config).eval()


def every_kind(bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    return {
        "distilbert": make_student(bert_tokenizer, LABELS).eval(),
        "bert": make_bert(bert_tokenizer, LABELS).eval(),
        "roberta": make_roberta(roberta_tokenizer, LABELS).eval(),
        "deberta": make_deberta(unigram_tokenizer, LABELS).eval(),
        "modernbert": modernbert(bert_tokenizer),
    }


def test_the_smallest_weights_of_all_layers_together_go(bert_tokenizer):
    student = make_bert(bert_tokenizer, LABELS)
    with torch.no_grad():
        student.bert.encoder.layer[0].intermediate.dense.weight.mul_(100)  # nothing small is left there
    masks = magnitude_masks(student, 0.3)
    parameters = dict(student.named_parameters())
    assert not any("embeddings" in name or name.startswith("classifier") for name in masks)
    weights = np.concatenate([parameters[name].detach().abs().numpy().ravel() for name in masks])
    kept = np.concatenate([mask.numpy().ravel() for mask in masks.values()]).astype(bool)
    assert (~kept).sum() == round(0.3 * len(weights))
    assert weights[~kept].max() < weights[kept].min()
    shares = {name: 1 - mask.mean().item() for name, mask in masks.items()}
    assert shares["bert.encoder.layer.0.intermediate.dense.weight"] < 0.02
    assert parameters["bert.pooler.dense.weight"].count_nonzero() == 32 * 32  # nothing is changed yet


def test_a_masked_head_says_nothing(bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    """As if the output projection had been given zeros in the head's place, in every architecture."""
    for kind, student in every_kind(bert_tokenizer, roberta_tokenizer, unigram_tokenizer).items():
        inputs = {
            "input_ids": torch.tensor([[2, 7, 9, 11, 3]]),
            "attention_mask": torch.ones(1, 5, dtype=torch.int64),
        }
        blocks = attention_outputs(student)
        heads = student.config.num_attention_heads
        assert len(blocks) == student.config.num_hidden_layers, kind
        importance = {name: torch.arange(heads, 0, -1.0) for name in blocks}  # the last head matters least
        masked = copy.deepcopy(student)
        masks = head_masks(masked, 1 / heads / len(blocks), importance)
        KeepPruned(masked, masks)
        (gone,) = [name for name in blocks if (masks[f"{name}.weight"] == 0).any()]

        def silence(module, given, heads=heads):
            (states,) = given
            width = states.shape[-1] // heads
            return (torch.cat([states[..., :-width], torch.zeros_like(states[..., -width:])], -1),)

        hook = student.get_submodule(gone).register_forward_pre_hook(silence)
        with torch.no_grad():
            silenced, pruned = student(**inputs).logits, masked(**inputs).logits
            hook.remove()
            whole = student(**inputs).logits
        torch.testing.assert_close(pruned, silenced, msg=kind)
        assert (whole - pruned).abs().max() > 1e-6, kind
        # Everything of the head is zero: its columns, and its rows of queries, keys and values with their biases.
        hidden = student.config.hidden_size
        zeros = sum(int((mask == 0).sum()) for mask in masks.values())
        biases = 0 if kind == "modernbert" else 3 * hidden // heads
        assert zeros == 4 * hidden * hidden // heads + biases, kind


def test_every_layer_keeps_its_best_head(bert_tokenizer):
    student = make_bert(bert_tokenizer, LABELS)
    first, second = attention_outputs(student)
    masks = head_masks(student, 0.75, {first: torch.tensor([0.1, 0.2]), second: torch.tensor([5.0, 4.0])})
    assert masks[f"{first}.weight"][0].tolist() == [0.0] * 16 + [1.0] * 16
    assert masks[f"{second}.weight"][0].tolist() == [1.0] * 16 + [0.0] * 16


@pytest.fixture
def trainer(tmp_path, teachers, bert_tokenizer, rows):
    return MultiTeacherDistillationTrainer(
        model=make_student(bert_tokenizer, LABELS, dropout=0.2),
        teachers=teachers[:1],
        args=DistillationArguments(
            output_dir=str(tmp_path), use_cpu=True, max_steps=3, per_device_train_batch_size=8, learning_rate=1e-2,
            weight_decay=0.1, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=bert_tokenizer,
    )  # fmt: skip


def test_importance_is_the_derivative_by_a_factor_of_the_heads_output(trainer):
    found = head_importance(trainer, batches=1)
    (name,) = attention_outputs(trainer.student)
    factor = torch.ones(2, requires_grad=True)

    def scale(module, given):
        (states,) = given
        return (states * factor.repeat_interleave(states.shape[-1] // 2),)

    hook = trainer.student.get_submodule(name).register_forward_pre_hook(scale)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch).backward()
    hook.remove()
    expected = factor.grad.abs()
    torch.testing.assert_close(found[name], expected / expected.norm())


def test_zeros_stay_zeros_while_the_rest_learns(trainer):
    masks = magnitude_masks(trainer.student, 0.5)
    trainer.add_callback(KeepPruned(trainer.student, masks))
    before = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
    trainer.train()
    for name, parameter in trainer.student.named_parameters():
        if name in masks:
            assert torch.equal(parameter == 0, masks[name] == 0)
    assert any((parameter != before[name]).any() for name, parameter in trainer.student.named_parameters())


@pytest.mark.parametrize("share", [0, 1, 1.5, float("nan")])
def test_a_share_is_between_nothing_and_all(share, bert_tokenizer):
    with pytest.raises(ConfigurationError, match="above 0 and below 1"):
        magnitude_masks(make_student(bert_tokenizer), share)


def test_what_cannot_be_pruned_is_said(bert_tokenizer):
    student = make_student(bert_tokenizer)
    (name,) = attention_outputs(student)
    with pytest.raises(ConfigurationError, match="leaves none to set to zero, since each layer keeps one"):
        head_masks(student, 0.5, {name: torch.ones(1)})
    with pytest.raises(ConfigurationError, match="attention blocks of Linear have no output projection"):
        attention_outputs(torch.nn.Linear(2, 2))


# ---- The recipe ----


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys, checkpoints, rows, held_out):
    """Runs the script on a recipe with two small teachers, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    rows.to_json("train.jsonl")
    held_out.to_json("test.jsonl")
    Path("tiny.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, test: test.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {{model: {checkpoints["roberta"]}, name: second}}]}}
student:
  config: {{model_type: distilbert, dim: 24, n_layers: 2, n_heads: 2, hidden_dim: 48}}
  tokenizer: {checkpoints["bert"]}
  max_length: 24
fusion: linear_pool
training: {{use_cpu: true, seed: 5, disable_tqdm: true, save_strategy: no, num_train_epochs: 1}}
evaluation: {{metrics: [accuracy]}}
""")

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["prune.py", "tiny.yaml", *options])
        runpy.run_path(str(ROOT / "recipes" / "prune.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--sparsity", "--heads"])
def test_the_recipe_trains_prunes_and_distils_again(run_script, how):
    printed = run_script(how, "0.5", "--epochs", "0.25", "training.learning_rate=1e-3")
    root = Path("runs/tiny-pruned")
    assert (root / "report.md").read_text() in printed
    table = [line for line in (root / "report.md").read_text().splitlines() if line.startswith("|")]
    assert cells(table[0]) == ["system", "accuracy", "parameters", "not zero", "bytes", "p50 of 1 row"]
    by_name = {cells(line)[0]: cells(line)[1:] for line in table[2:]}
    assert list(by_name) == [
        "unpruned",
        "pruned",
        "distilled again",
        "unpruned, distilled as long",
        "ensemble",
        "teacher:bert",
        "teacher:second",
    ]
    dense, pruned = (AutoModelForSequenceClassification.from_pretrained(f) for f in ("runs/tiny", root))
    assert by_name["unpruned"][2] == f"{count_nonzero(dense):,}"
    assert by_name["distilled again"][2] == by_name["pruned"][2] == f"{count_nonzero(pruned):,}"
    assert count_nonzero(pruned) < count_nonzero(dense)
    longer = AutoModelForSequenceClassification.from_pretrained(root / "unpruned")
    assert by_name["unpruned, distilled as long"][2] == f"{count_nonzero(longer):,}"
    assert count_nonzero(longer) > 0.99 * longer.num_parameters()
    # What a student costs does not change, and the table says so.
    assert len({tuple(by_name[name][i] for i in (1, 3)) for name in list(by_name)[:4]}) == 1
    assert "bytes and time stay what they were" in printed
    recipe = load_recipe(root / "recipe.yaml")
    assert (recipe.student.model, recipe.student.config) == ("runs/tiny", None)
    assert (recipe.training["num_train_epochs"], recipe.training["learning_rate"]) == (0.25, 1e-3)
    # The two that learn on start from the same student, and are told apart by the folder and the masks alone.
    control = load_recipe(root / "unpruned" / "recipe.yaml")
    assert control.training == {**recipe.training, "output_dir": str(root / "unpruned")}
    assert control.model_copy(update={"training": recipe.training}) == recipe


@pytest.mark.slow
def test_who_learns_nothing_gets_no_better(run_script):
    """Without a learning rate, both that learn on end as they began: one as the pruned student, one as the unpruned."""
    printed = run_script("--sparsity", "0.5", "training.learning_rate=0", "evaluation.metrics=[nll]")
    lines = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    by_name = {line[0]: line[1:4] for line in lines}
    assert by_name["distilled again"] == by_name["pruned"] != by_name["unpruned"]
    assert by_name["unpruned, distilled as long"] == by_name["unpruned"]


@pytest.mark.slow
def test_a_student_that_is_there_is_not_trained_again(run_script):
    run_script("--sparsity", "0.5", "--epochs", "0.25")
    before = Path("runs/tiny/model.safetensors").stat().st_mtime_ns
    run_script("--sparsity", "0.9", "--epochs", "0.25", "--output", "elsewhere")
    assert Path("runs/tiny/model.safetensors").stat().st_mtime_ns == before
    few, many = (
        AutoModelForSequenceClassification.from_pretrained(f) for f in ("elsewhere", "runs/tiny-pruned")
    )
    assert count_nonzero(few) < count_nonzero(many)
