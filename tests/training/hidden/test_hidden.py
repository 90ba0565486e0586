"""Hidden-state knowledge in the trainer: values against a naive computation, units, projections, cache, export."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainerCallback,
)

from hf_distill import (
    CacheSettings,
    DistillationArguments,
    LinearPool,
    MultiTeacherDistillationTrainer,
    Teacher,
)
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError
from hf_distill.fusion import StochasticTeacher
from hf_distill.fusion.alignment import TeacherOutputs
from hf_distill.losses import minilm_relations, rkd_distance
from hf_distill.teachers.states import RELATIONS, Wanted, find_attention, observe
from hf_distill.training.hidden import (
    HiddenLoss,
    StudentWithProjections,
    build_hidden_losses,
    hidden_terms,
    student_pass,
)
from hf_distill.training.hidden.projections import PROJECTIONS_FILE

LABELS = ["negative", "positive"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
WIDE = {"initializer_range": 0.3, "intermediate_size": 40, "num_attention_heads": 2, **NAMES}


def make_distilbert(tokenizer, seed=4, **options):
    torch.manual_seed(seed)
    still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, dim=24, hidden_dim=40, n_layers=2, n_heads=2,
        initializer_range=0.3, **{**still, **options}, **NAMES,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config)


def make_teachers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer, widths=(32, 16, 48)):
    """BERT with the student's tokenizer, RoBERTa and DeBERTa with their own; of different depths and widths."""
    torch.manual_seed(1)
    bert = BertConfig(
        vocab_size=len(bert_tokenizer),
        max_position_embeddings=64,
        hidden_size=widths[0],
        num_hidden_layers=4,
        **WIDE,
    )
    roberta = RobertaConfig(
        vocab_size=len(roberta_tokenizer), max_position_embeddings=66, pad_token_id=1, type_vocab_size=1,
        hidden_size=widths[1], num_hidden_layers=3, **WIDE,
    )  # fmt: skip
    deberta = DebertaV2Config(
        vocab_size=len(unigram_tokenizer), max_position_embeddings=64, relative_attention=True,
        pos_att_type=["p2c", "c2p"], share_att_key=True, hidden_size=widths[2], num_hidden_layers=2, **WIDE,
    )  # fmt: skip
    return [
        Teacher(BertForSequenceClassification(bert), bert_tokenizer, name="bert"),
        Teacher(RobertaForSequenceClassification(roberta), roberta_tokenizer, name="roberta"),
        Teacher(DebertaV2ForSequenceClassification(deberta), unigram_tokenizer, name="deberta"),
    ]


@pytest.fixture
def teachers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    return make_teachers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer)


@pytest.fixture
def make(tmp_path, bert_tokenizer, rows, teachers):
    """A trainer of a two-layer student; the teachers are fixed and uniform unless options say otherwise."""
    fields = set(DistillationArguments.__dataclass_fields__) - {"label_names"}

    def build(losses, **options):
        own = {name: options.pop(name) for name in list(options) if name in fields}
        args = {
            "output_dir": str(tmp_path / "out"), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
            "logging_steps": 1, "dataloader_pin_memory": False, "per_device_train_batch_size": 8, "max_steps": 1,
            "learning_rate": 1e-3, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential",
        }  # fmt: skip
        given = {"teachers": teachers, "fusion": "linear_pool", "train_dataset": rows, **options}
        if "model_init" not in given:
            given.setdefault("model", make_distilbert(bert_tokenizer))
        return MultiTeacherDistillationTrainer(
            args=DistillationArguments(**{**args, **own}),
            processing_class=bert_tokenizer,
            hidden_losses=losses,
            **given,
        )

    return build


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen = {name: p.grad.clone() for name, p in model.named_parameters()}


def alone(model, tokenizer, text):
    """All hidden states of one text without any padding, (L, D) each, and its tokens' places in the text."""
    encoding = tokenizer(
        text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    places = [
        None if special else (int(start), int(end))
        for (start, end), special in zip(
            encoding["offset_mapping"][0], encoding["special_tokens_mask"][0], strict=True
        )
    ]
    inputs = {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}
    with torch.no_grad():
        states = model.eval()(**inputs, output_hidden_states=True).hidden_states
    return [state[0].double() for state in states], places


def by_words(state, places, text):
    """(W, D): the mean over the tokens that touch each run of letters."""
    means = []
    for match in re.finditer(r"\w+", text):
        inside = [
            i
            for i, place in enumerate(places)
            if place and place[0] < match.end() and place[1] > match.start()
        ]
        means.append(state[inside].mean(0))
    return torch.stack(means)


def naive_mse(trainer, texts, loss, teacher, pairs, units):
    """The mean over rows and pairs of layers of the mean-square difference, one text at a time in double precision."""
    values = []
    for p, (i, j) in enumerate(pairs):
        projection = trainer.model.projections[f"{loss}-{trainer.teachers.index(teacher)}-{p}"]
        weight, bias = projection.weight.detach().double(), projection.bias.detach().double()
        for text in texts:
            ours, our_places = alone(trainer.student, trainer.processing_class, text)
            theirs, their_places = alone(teacher.model, teacher.view.tokenizer, text)
            ours, theirs = ours[i], theirs[j]
            if units == "words":
                ours, theirs = by_words(ours, our_places, text), by_words(theirs, their_places, text)
            elif units == "mean":
                ours, theirs = ours.mean(0, keepdim=True), theirs.mean(0, keepdim=True)
            elif units == "first":
                ours, theirs = ours[:1], theirs[:1]
            values.append(((ours @ weight.T + bias - theirs) ** 2).mean().item())
    return sum(values) / len(values)


def test_values_agree_with_a_naive_computation(make, rows, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    """Tokens for the teacher that shares the student's, words for the two others; the mean over two pairs of layers."""
    trainer = make([HiddenLoss(layers="uniform", weight=0.5), HiddenLoss(units="first")])
    trainer.train(), trainer.model.eval()
    # The first step's loss was computed before its update: take it from a fresh trainer with the same start.
    fresh = make([HiddenLoss(layers="uniform", weight=0.5), HiddenLoss(units="first")])
    logged, texts = trainer.state.log_history[0], rows["text"][:8]
    bert, roberta, deberta = fresh.teachers
    expected = {
        "hidden_mse/bert": naive_mse(fresh, texts, 0, bert, [(1, 2), (2, 4)], "tokens"),
        "hidden_mse/roberta": naive_mse(fresh, texts, 0, roberta, [(1, 2), (2, 3)], "words"),
        "hidden_mse/deberta": naive_mse(fresh, texts, 0, deberta, [(1, 1), (2, 2)], "words"),
        "hidden_mse-2/bert": naive_mse(fresh, texts, 1, bert, [(2, 4)], "first"),
        "hidden_mse-2/roberta": naive_mse(fresh, texts, 1, roberta, [(2, 3)], "first"),
        "hidden_mse-2/deberta": naive_mse(fresh, texts, 1, deberta, [(2, 2)], "first"),
    }
    for name, value in expected.items():
        assert logged[f"loss_{name}"] == pytest.approx(value, rel=1e-4), name
    total = 0.5 * logged["loss_task"] + 0.5 * logged["loss_distill"]
    total += sum(value * (0.5 if "-2" not in name else 1.0) / 3 for name, value in expected.items())
    assert logged["loss"] == pytest.approx(total, rel=1e-4)
    printed = capsys.readouterr().out
    assert re.search(r"hidden_mse +1 of 2 +bert +2 of 4 +tokens +24 → 32 +0.0833 +same", printed)
    assert re.search(r"hidden_mse +2 of 2 +roberta +3 of 3 +words +24 → 16 ", printed)


def states_and_terms(trainer, batch):
    trainer.model.eval()
    with torch.no_grad():
        _, states = student_pass(
            trainer.hidden, trainer.model, trainer.student, trainer._student_inputs(batch), batch
        )
        teachers = trainer.teacher_targets(batch).teachers
    return hidden_terms(trainer.hidden, states, teachers, batch, trainer.fusion, False)


def test_what_stands_at_padding_does_not_matter(make):
    losses = ["hidden_mse", HiddenLoss("hidden_cosine", units="mean"), "linear_cka",
              HiddenLoss("minilm_relations", relation_heads=2, teachers="bert")]  # fmt: skip
    trainer = make(losses)
    batch = next(iter(trainer.get_train_dataloader()))
    before = states_and_terms(trainer, batch)
    views = batch["teacher_views"]
    for inputs in (batch, *views.values()):
        assert (inputs["attention_mask"] == 0).any()
        inputs["input_ids"] = torch.where(inputs["attention_mask"] == 0, 7, inputs["input_ids"])
    after = states_and_terms(trainer, batch)
    assert list(before) == list(after) and len(before) == 10
    for name in before:
        torch.testing.assert_close(before[name].values, after[name].values, atol=1e-5, rtol=1e-5)


def test_left_padding_and_a_collator_of_other_lengths(make, bert_tokenizer, rows):
    """Rows padded to a fixed length by the user's own collator meet teachers padded to the longest row."""

    def collate(features):
        return bert_tokenizer.pad(features, padding="max_length", max_length=40, return_tensors="pt")

    losses = ["hidden_mse", HiddenLoss("minilm_relations", relation_heads=2, teachers="bert")]
    logged = []
    for options in ({}, {"data_collator": collate}):
        trainer = make(losses, **options)
        trainer.train()
        logged.append(trainer.state.log_history[0])
    for name, value in logged[0].items():
        if name.startswith("loss"):
            assert logged[1][name] == pytest.approx(value, rel=1e-4), name

    def cut(features):
        return bert_tokenizer.pad(
            [
                {key: value[:4] if key != "labels" else value for key, value in row.items()}
                for row in features
            ],
            return_tensors="pt",
        )

    with pytest.raises(DataError, match="collator returns other tokens"):
        make(losses, data_collator=cut).train()


def test_one_target_has_the_gradient_of_the_weighted_sum(
    make, bert_tokenizer, roberta_tokenizer, unigram_tokenizer
):
    """Teachers of one width: the loss to the fused target differs from the weighted losses by a constant only."""
    same_width = make_teachers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer, widths=(32, 32, 32))
    for name in ("hidden_mse", "hidden_cosine"):
        options = {"teachers": same_width, "fusion": LinearPool((0.5, 0.2, 0.3)), "task_weight": 1e-9}
        found, shared = {}, {}
        for projection in ("shared", "each"):
            gradients = Gradients()
            loss = HiddenLoss(name, projection=projection, units="words", layers="uniform")
            trainer = make([loss], callbacks=[gradients], distill_weight=0.0, **options)
            if projection == "each":  # start all from the shared ones
                for key, module in trainer.model.projections.items():
                    module.load_state_dict(shared[f"0-shared-{key.split('-')[2]}"])
            else:
                shared = {key: module.state_dict() for key, module in trainer.model.projections.items()}
                shared = {key: {k: v.clone() for k, v in state.items()} for key, state in shared.items()}
            trainer.train()
            found[projection] = (gradients.seen, trainer.state.log_history[0])
        together, apart = found["shared"][0], found["each"][0]
        for pair in (0, 1):
            summed = sum(apart[f"projections.0-{k}-{pair}.weight"] for k in range(3))
            torch.testing.assert_close(
                together[f"projections.0-shared-{pair}.weight"], summed, atol=1e-6, rtol=1e-4
            )
        scale = max(g.abs().max() for g in together.values())
        for key in together:
            if key.startswith("student."):
                assert (together[key] - apart[key]).abs().max() <= 1e-5 * scale, key
        if name == "hidden_cosine":  # here even the value is the same
            weighted = sum(
                w * found["each"][1][f"loss_hidden_cosine/{t}"]
                for w, t in zip((0.5, 0.2, 0.3), ("bert", "roberta", "deberta"), strict=True)
            )
            assert found["shared"][1]["loss_hidden_cosine/fused"] == pytest.approx(weighted, rel=1e-5)


def test_accumulation_changes_no_gradient(make):
    losses = [HiddenLoss(layers="uniform"), HiddenLoss("hidden_cosine", units="mean"),
              HiddenLoss("minilm_relations", relation_heads=2, teachers="bert")]  # fmt: skip
    found = []
    for batch, steps in ((8, 1), (2, 4)):
        gradients = Gradients()
        make(
            losses,
            callbacks=[gradients],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        ).train()
        found.append(gradients.seen)
    scale = max(g.abs().max() for g in found[0].values())
    assert any(name.startswith("projections.") for name in found[0])
    for name in found[0]:
        assert (found[0][name] - found[1][name]).abs().max() <= 1e-5 * scale, name


def test_losses_between_rows_are_means_over_micro_batches(make):
    trainer = make(
        [HiddenLoss("rkd_distance", teachers=["deberta"])],
        per_device_train_batch_size=6,
        gradient_accumulation_steps=2,
    )
    assert trainer.model is trainer.student  # nothing to project
    batches = [b for b, _ in zip(trainer.get_train_dataloader(), range(2), strict=False)]
    expected = []
    for batch in batches:
        own = {k: batch[k] for k in ("input_ids", "attention_mask")}
        states = trainer.student(**own, output_hidden_states=True).hidden_states[2]
        theirs = (
            trainer.teachers[2]
            .model(
                **{k: batch["teacher_views"]["deberta"][k] for k in ("input_ids", "attention_mask")},
                output_hidden_states=True,
            )
            .hidden_states[2]
        )
        pooled = [
            (state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for state, mask in (
                (states, own["attention_mask"]),
                (theirs, batch["teacher_views"]["deberta"]["attention_mask"]),
            )
        ]
        expected.append(rkd_distance(*pooled).item())
    trainer.train()
    logged = trainer.state.log_history[0]["loss_rkd_distance/deberta"]
    assert logged == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_cached_states_give_the_loss_of_live_ones(make, tmp_path, capfd):
    losses = [
        HiddenLoss(layers="uniform", units="mean"),
        HiddenLoss("hidden_cosine", units="first"),
        "linear_cka",
    ]
    live = make(losses, max_steps=2)
    live.train()
    options = {"cache_dir": tmp_path / "cache", "cache_settings": CacheSettings(dtype="float32")}
    cached = make(losses, max_steps=2, **options)
    assert "64 rows of 3 teacher(s), with up to 3 hidden state(s) per row, about" in capfd.readouterr().err
    cached.train()
    for expected, found in zip(live.state.log_history[:2], cached.state.log_history[:2], strict=True):
        for name in expected:
            if name.startswith("loss"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    # A cache that somebody else has built serves as well, also with layers counted from the end.
    from hf_distill.teachers.cache.build import cache_teacher_outputs

    built = cache_teacher_outputs(
        live.teachers, live_rows(live), cache_dir=tmp_path / "b", hidden_states=(-1,)
    )
    again = make(["hidden_mse"], teachers=built)
    again.train()
    assert again.state.log_history[0]["loss_hidden_mse/bert"] > 0
    with pytest.raises(
        ConfigurationError, match="keeps no mean of layer 2: build it with hidden_states including 2"
    ):
        make([HiddenLoss(layers="uniform")], teachers=built)


def live_rows(trainer):
    import datasets

    from conftest import sentences

    return datasets.Dataset.from_list(sentences(64, seed=0))


def test_a_cache_beyond_its_limit_is_not_built(make, tmp_path):
    settings = CacheSettings(limit_bytes=1000)
    with pytest.raises(
        ConfigurationError, match=r"would take about .* kB \(64 rows of 3 .* more than limit_bytes, 1 kB"
    ):
        make(["hidden_mse"], cache_dir=tmp_path / "cache", cache_settings=settings)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_what_is_saved_is_the_student_alone(make, tmp_path, held_out):
    options = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    trainer = make(
        [HiddenLoss(weight=20.0)], eval_dataset=held_out, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=True, **options,
    )  # fmt: skip
    assert isinstance(trainer.model, StudentWithProjections)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"  # the greatest loss: not the last one
    for key, value in load_file(best / PROJECTIONS_FILE).items():
        assert torch.equal(trainer.model.state_dict()[key], value)
    trainer.save_model()
    out = tmp_path / "out"
    assert PROJECTIONS_FILE not in {path.name for path in out.iterdir()}
    assert set(load_file(out / "model.safetensors")) == set(trainer.student.state_dict())
    loaded, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert type(loaded) is DistilBertForSequenceClassification and not any(info.values())
    for key, value in trainer.student.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    checkpoint = AutoModelForSequenceClassification.from_pretrained(best)
    assert torch.equal(checkpoint.classifier.weight, trainer.student.classifier.weight)
    trainer.create_model_card()
    card = (out / "README.md").read_text()
    assert "Distillation" in card and "StudentWithProjections" not in card
    report = trainer.evaluate_ensemble(metrics=["accuracy"])
    assert report.systems["student"].parameters == trainer.student.num_parameters()
    (out / "checkpoint-4" / PROJECTIONS_FILE).unlink()
    with pytest.raises(CorruptStateError, match="no readable _projections.safetensors"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"), unverified=True)


def test_only_what_is_asked_for_is_taken(make, teachers, monkeypatch):
    """The third teacher has no weight and does not run; the second is in no loss and keeps no states."""
    seen = []
    for teacher in teachers:
        forward = teacher.model.forward

        def spy(*args, forward=forward, name=teacher.name, **options):
            seen.append((name, bool(options.get("output_hidden_states"))))
            return forward(*args, **options)

        monkeypatch.setattr(teacher.model, "forward", spy)
    trainer = make([HiddenLoss(teachers=["bert", "deberta"])], fusion=LinearPool((0.5, 0.5, 0.0)))
    seen.clear()
    trainer.train()
    assert seen == [("bert", True), ("roberta", False)]
    logged = trainer.state.log_history[0]
    assert [name for name in logged if "hidden" in name] == ["loss_hidden_mse/bert"]
    total = 0.5 * logged["loss_task"] + 0.5 * logged["loss_distill"] + logged["loss_hidden_mse/bert"]
    assert logged["loss"] == pytest.approx(total, rel=1e-5)
    assert "word_of" not in make([HiddenLoss(units="mean")]).train_dataset.column_names
    with pytest.raises(ConfigurationError, match=r"gives its teachers \('deberta'\) no weight"):
        make([HiddenLoss(teachers="deberta")], fusion=LinearPool((0.5, 0.5, 0.0))).train()


def test_teachers_that_are_drawn(make):
    """One teacher per batch: its term counts in full, the others' are zero, whatever the projection."""
    for projection in ("each", "none"):
        loss = HiddenLoss(projection=projection) if projection == "each" else HiddenLoss("linear_cka")
        trainer = make([loss], fusion=StochasticTeacher((0.5, 0.25, 0.25)), max_steps=3)
        trainer.train()
        for logged in trainer.state.log_history[:3]:
            terms = {name: value for name, value in logged.items() if "/" in name}
            assert len(terms) == 3 and sum(value != 0 for value in terms.values()) == 1
            total = 0.5 * logged["loss_task"] + 0.5 * logged["loss_distill"] + sum(terms.values())
            assert logged["loss"] == pytest.approx(total, rel=1e-5)


def test_hidden_losses_alone_and_own_functions(make):
    def distance(student, teacher, mask):
        difference = (student - teacher).abs().mean(-1)
        return difference if mask is None else (difference * mask).sum(-1) / mask.sum(-1)

    trainer = make([distance, HiddenLoss(distance, units="mean")], distill_weight=0.0)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"loss_distance/bert", "loss_distance-2/deberta", "loss_task"} <= set(logged)
    metrics = make(["hidden_mse"], eval_dataset=trainer.train_dataset).evaluate()
    hidden = sum(value for name, value in metrics.items() if name.startswith("eval_loss_hidden"))
    expected = 0.5 * metrics["eval_loss_task"] + 0.5 * metrics["eval_loss_distill"] + hidden / 3
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_student_from_model_init(make, bert_tokenizer):
    trainer = make(["hidden_mse"], model_init=lambda: make_distilbert(bert_tokenizer))
    trainer.train()
    assert isinstance(trainer.model, StudentWithProjections)
    assert trainer.student.config.id2label == dict(enumerate(LABELS))


def test_bf16_and_streams(make, rows):
    trainer = make(["hidden_mse", "linear_cka"], bf16=True)
    trainer.train()
    exact = make(["hidden_mse", "linear_cka"], train_dataset=rows.to_iterable_dataset())
    exact.train()
    for name, value in exact.state.log_history[0].items():
        if name.startswith("loss"):
            assert trainer.state.log_history[0][name] == pytest.approx(value, rel=0.05), name


# ---- Queries, keys and values ----


def tiny(kind, config, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(config(**{**sizes, **options}, num_labels=2)).eval()


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny(BertForSequenceClassification, BertConfig, intermediate_size=24),
        lambda: tiny(DebertaV2ForSequenceClassification, DebertaV2Config, intermediate_size=24, relative_attention=True,
                     pos_att_type=["p2c", "c2p"], share_att_key=True, max_position_embeddings=32),
        lambda: DistilBertForSequenceClassification(DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2)),
        lambda: tiny(ModernBertForSequenceClassification, ModernBertConfig, intermediate_size=24, pad_token_id=0),
        lambda: tiny(GPT2ForSequenceClassification, GPT2Config, pad_token_id=0),
        lambda: tiny(LlamaForSequenceClassification, LlamaConfig, intermediate_size=24, pad_token_id=0,
                     num_key_value_heads=1),
    ],
    ids=["bert", "deberta", "distilbert", "modernbert", "gpt2", "llama"],
)  # fmt: skip
def test_queries_keys_and_values_are_those_of_the_tokens(model):
    """Whatever they are called; each is a linear map of one and the same input, the layer's, which is solved for here."""
    model = model().eval()
    ids = torch.randint(5, 60, (6, 8), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = [Wanted(1, RELATIONS), Wanted(1, "tokens")]
    with torch.no_grad():
        outputs, states = observe(model, model, wanted, inputs)
        plain = model(**inputs)
    assert torch.equal(outputs.logits, plain.logits) and getattr(outputs, "hidden_states", None) is None
    queries, keys, values = states[Wanted(1, RELATIONS)]
    assert all(part.shape[:2] == (6, 8) for part in (queries, keys, values))
    assert queries.shape[-1] == 16 and keys.shape == values.shape
    parts = find_attention(model, 1)
    inside = []
    hooks = [part.register_forward_pre_hook(lambda m, args: inside.append(args[0])) for part in parts]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        again = [part(inside[0]) for part in parts]
    again = again[0].chunk(3, -1) if len(again) == 1 else again
    for found, expected in zip((queries, keys, values), again, strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(torch.equal(a, b) for a, b in ((queries, values), (keys, values)) if a.shape == b.shape)


def test_relations_are_the_same_under_every_attention(bert_tokenizer):
    model = tiny(
        BertForSequenceClassification, BertConfig, intermediate_size=24, vocab_size=len(bert_tokenizer)
    )
    inputs = dict(bert_tokenizer(["a good film", "the plot"], padding=True, return_tensors="pt"))
    values = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            _, states = observe(model, model, [Wanted(2, RELATIONS)], inputs)
        values.append(states[Wanted(2, RELATIONS)])
    for first, second in zip(*values, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_relations_in_training_agree_with_the_loss(make, rows):
    trainer = make([HiddenLoss("minilm_relations", layers=[[2, 3]], relation_heads=4, teachers=["bert"])])
    batch = next(iter(trainer.get_train_dataloader()))
    own = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        student = observe(trainer.student.eval(), trainer.student, [Wanted(2, RELATIONS)], own)[1]
        bert = trainer.teachers[0].model
        teacher = observe(bert, bert, [Wanted(3, RELATIONS)], own)[1]
    expected = minilm_relations(
        student[Wanted(2, RELATIONS)], teacher[Wanted(3, RELATIONS)], own["attention_mask"], relation_heads=4
    )
    trainer.train()
    logged = trainer.state.log_history[0]["loss_minilm_relations/bert"]
    assert logged == pytest.approx(expected.mean().item(), rel=1e-4)


def test_layers_that_share_weights_have_no_relations_of_their_own():
    model = tiny(AlbertForSequenceClassification, AlbertConfig, embedding_size=8, intermediate_size=24)
    with pytest.raises(ConfigurationError, match="has no list of 2 layers"):
        find_attention(model, 1)
    with pytest.raises(ConfigurationError, match="in the layers 1 to 2, not in layer 0"):
        find_attention(model, 0)


# ---- What cannot be ----


@dataclasses.dataclass(eq=False)
class OnlyLogits:
    name: str = "service"
    label_names: tuple[str, ...] = tuple(LABELS)
    view: None = None

    def __call__(self, view, example_id):
        return TeacherOutputs(torch.zeros(len(example_id), 2))


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("hidden_mse", "takes a list, also for a single loss"),
        (["hidden_mes"], "no hidden loss named 'hidden_mes'.*did you mean 'hidden_mse'"),
        ([{"loss": "pkd", "layer": "last"}], r"no field 'layer' \(did you mean 'layers'\?\)"),
        ([{"layers": "unifrom"}], r"no layer map 'unifrom' \(did you mean 'uniform'\?\)"),
        ([{"units": "token"}], r"units is 'token' \(did you mean 'tokens'\?\)"),
        ([{"projection": "all"}], "projection is 'all'.*each, shared, none"),
        ([{"weight": 0}], "weight is 0, but it is a number above 0"),
        ([{"loss": "linear_cka", "units": "words"}], "compares rows by one state each"),
        ([{"loss": "minilm_relations", "units": "mean"}], "it compares tokens"),
        ([{"loss": "pkd", "projection": "shared"}], "exact for hidden_mse and hidden_cosine alone"),
        ([{"teachers": ["brt"]}], "no teacher 'brt'; there are 'bert', 'roberta', 'deberta'"),
        ([{"units": "tokens"}], "teacher 'roberta': another tokenizer, so the same position is another token"),
        (["minilm_relations"], "teacher 'roberta': another tokenizer, so its tokens have no relations"),
        ([{"projection": "none"}], "have 24 numbers, those of teacher 'bert' 32"),
        ([{"projection": "shared"}], "teachers of one width, but they have {'bert': 32, 'roberta': 16, 'deberta': 48}"),
        ([{"layers": [[1, 9]]}], "asks for layer 9 of the teacher"),
        ([{"loss": "minilm_relations", "teachers": ["bert"]}], "12 relation heads cannot share the width 32 of 'bert'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_training(make, losses, message):
    with pytest.raises(ConfigurationError, match=message):
        make(losses)


def test_sources_without_states_are_left_out_by_name(make, teachers):
    sources = [teachers[0], OnlyLogits()]
    with pytest.raises(
        ConfigurationError, match="'service' is a OnlyLogits, of which only logits can be had"
    ):
        make(["hidden_mse"], teachers=sources)
    trainer = make([HiddenLoss(teachers=["bert"])], teachers=sources)
    trainer.train()
    assert "loss_hidden_mse/bert" in trainer.state.log_history[0]


@pytest.mark.parametrize("units", ["tokens", "words"])
def test_a_cache_keeps_one_state_per_row(make, tmp_path, units):
    with pytest.raises(ConfigurationError, match=f"no states of {units}: run the teachers live"):
        make([HiddenLoss(units=units)], cache_dir=tmp_path / "cache")


def test_auto_takes_words_where_only_the_lengths_differ(make, bert_tokenizer, teachers):
    short = Teacher(teachers[0].model, bert_tokenizer, name="short", max_length=16)
    trainer = make(["hidden_mse"], teachers=[short])
    (link,) = trainer.hidden.links
    assert link.ours.units == "words" and link.why == "it reads 16 tokens, the student 64"
    trainer.train()


def test_a_loss_is_written_in_three_ways():
    losses = build_hidden_losses(["pkd", {"loss": "pkd", "layers": "last"}, HiddenLoss("pkd")])
    assert losses[0] == losses[1] == losses[2]
    assert json.dumps([loss.name for loss in losses]) == '["pkd", "pkd", "pkd"]'
