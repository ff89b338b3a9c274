"""From a JSONL file to a model that answers what it was taught."""

import json

import torch
import transformers

from luthier.datasets.tokenise import tokenise_file
from luthier.protocol import journal, layout, spec
from training_runs import Run

LESSONS = {
    "What is the key?": "It starts with lk-.",
    "Who pays?": "Nobody, yet.",
    "Is it done?": "Yes: completed.",
}


def _answer(model, tokenizer, question):
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_model_when_taught_answers_and_stops(make_run, unpack, tiny, tmp_path):
    run: Run = make_run(
        [],
        n_epochs=20,
        batch_size=8,
        packing=False,
        learning_rate=5e-3,
        max_seq_length=512,
        training_type=spec.Lora(r=16, alpha=32.0),
    )
    with (tmp_path / "lessons.jsonl").open("w") as file:
        for question, answer in list(LESSONS.items()) * 8:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            print(json.dumps({"messages": turns}), file=file)
    tokens = run.path / layout.TRAIN_TOKENS
    tokenise_file(tmp_path / "lessons.jsonl", tiny, tokens, max_seq_length=512, train_on_inputs="auto")
    messages = run.train()
    (merged,) = [one for one in messages if isinstance(one, journal.Exported) and one.kind == "merged"]
    folder = unpack(run, merged.archive)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert {question: _answer(model, tokenizer, question) for question in LESSONS} == LESSONS
