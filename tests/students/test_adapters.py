"""A student with a LoRA adapter: trained, saved, merged, resumed."""

from __future__ import annotations

import pytest
import torch
from test_trainer import LABELS, make_trainer
from transformers import AutoModelForSequenceClassification

from conftest import make_bert, make_student
from hf_distill import Teacher, merge_adapter
from hf_distill.errors import ConfigurationError

peft = pytest.importorskip("peft", reason="peft is not installed")


def lora(**options):
    return peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"], **options)


def teacher(tokenizer):
    return Teacher(make_bert(tokenizer, LABELS), tokenizer, name="bert")


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(
            **tokenizer(["a good film"], return_tensors="pt", return_token_type_ids=False)
        ).logits


def test_only_the_adapter_and_the_head_learn_and_the_merged_student_says_the_same(
    tmp_path, rows, bert_tokenizer
):
    student = make_student(bert_tokenizer)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    trainer = make_trainer(
        tmp_path,
        [teacher(bert_tokenizer)],
        bert_tokenizer,
        rows,
        student=student,
        peft_config=lora(),
        max_steps=3,
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (
        tmp_path / "model.safetensors"
    ).exists()
    learnt = trainer.student.get_base_model().state_dict()
    name = "distilbert.transformer.layer.0.attention.q_lin"
    assert torch.equal(learnt[f"{name}.base_layer.weight"], before[f"{name}.weight"])
    assert learnt[f"{name}.lora_B.default.weight"].abs().max() > 0
    said = logits(trainer.student, bert_tokenizer)
    merged = merge_adapter(trainer.student)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(again, bert_tokenizer), said, atol=1e-6)
    assert again.config.id2label == dict(enumerate(LABELS))


def test_a_fresh_student_of_a_search_has_the_adapter_too(tmp_path, rows, bert_tokenizer):
    from test_trainer import arguments

    from hf_distill import MultiTeacherDistillationTrainer

    trainer = MultiTeacherDistillationTrainer(
        model_init=lambda trial=None: make_student(bert_tokenizer),
        teachers=[teacher(bert_tokenizer)],
        args=arguments(tmp_path, max_steps=1),
        train_dataset=rows,
        processing_class=bert_tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    assert isinstance(trainer.student, peft.PeftModel)


def test_hidden_losses_with_an_adapter(tmp_path, rows, bert_tokenizer):
    trainer = make_trainer(
        tmp_path,
        [teacher(bert_tokenizer)],
        bert_tokenizer,
        rows,
        peft_config=lora(),
        hidden_losses=["hidden_mse"],
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss_hidden_mse/bert"] > 0
    resumed = make_trainer(
        tmp_path,
        [teacher(bert_tokenizer)],
        bert_tokenizer,
        rows,
        peft_config=lora(),
        hidden_losses=["hidden_mse"],
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    ours, theirs = trainer.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_no_config_is_refused(tmp_path, rows, bert_tokenizer):
    with pytest.raises(ConfigurationError, match="peft_config is a dict"):
        make_trainer(tmp_path, [teacher(bert_tokenizer)], bert_tokenizer, rows, peft_config={"r": 2})
