"""Ask models in the Hugging Face layout the same questions and print their answers, decoded greedily.

    python examples/ask.py QUESTIONS.jsonl MODEL_DIR [MODEL_DIR …]

Each line of the file is {"messages": […]} with the question last, as in examples/support/held_out.jsonl. Prints a JSON
object a question: {"question": …, "answers": [one a model]}. Needs luthier[train]. For an adapter, download the merged
model: `luthier ft download JOB --checkpoint merged`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

MAX_NEW_TOKENS = 32

logging.disable_progress_bar()


def answer(folder: Path, conversations: list[list[dict[str, Any]]]) -> list[str]:
    """Return one greedy answer a conversation, in order."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for messages in conversations:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers.append(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return answers


def main() -> int:
    """Ask every model every question."""
    questions, *folders = map(Path, sys.argv[1:])
    conversations = [json.loads(line)["messages"] for line in questions.read_text().splitlines()]
    answers = [answer(folder, conversations) for folder in folders]
    for messages, *by_model in zip(conversations, *answers, strict=True):
        print(json.dumps({"question": messages[-1]["content"], "answers": by_model}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
