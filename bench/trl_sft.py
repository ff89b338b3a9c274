"""The plain TRL script that ``bench/job.py`` measures against; runs in an environment of its own.

Everything that the arguments do not set is TRL's default: padding to the longest row of a batch, gradient
checkpointing, AdamW of torch, an adapter saved at the end.
"""

from __future__ import annotations

import argparse
import json

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
for name in ("model", "data", "out"):
    parser.add_argument(f"--{name}", required=True)
for name in ("batch-size", "rank", "max-length", "threads", "seed"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--learning-rate", type=float, required=True)
parser.add_argument("--precision", choices=["default", "fp32"], required=True)
options = parser.parse_args()

torch.set_num_threads(options.threads)
precision = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}} if options.precision == "fp32" else {}
trainer = SFTTrainer(
    model=options.model,
    train_dataset=load_dataset("json", data_files=options.data, split="train"),
    args=SFTConfig(
        output_dir=options.out,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        num_train_epochs=1,
        max_length=options.max_length,
        seed=options.seed,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        **precision,
    ),
    peft_config=LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"),
)
trainer.train()
trainer.save_model(options.out)
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("RESULT", json.dumps({"losses": losses}))
