"""Ask a model in the Hugging Face layout a few questions and print its answers, decoded greedily.

    python examples/ask.py MODEL_DIR "question" ["question" …]

Needs luthier[train]. For an adapter, download the merged model: `luthier ft download JOB --checkpoint merged`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_NEW_TOKENS = 90


def answer(folder: Path, questions: list[str]) -> list[str]:
    """Return one greedy answer a question, in order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers.append(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


if __name__ == "__main__":
    # JSON, so that a caller can tell the answers apart.
    print(json.dumps(answer(Path(sys.argv[1]), sys.argv[2:]), ensure_ascii=False, indent=2))
