"""What a run leaves behind: folders that PEFT and transformers load, as archives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from luthier.protocol import layout
from luthier.protocol.journal import CheckpointSaved, Exported
from luthier.protocol.spec import Lora, TrainingSpec
from luthier.training.archive import Member, WeightsDigest, make_member, write_archive
from luthier.training.card import Results, write_card
from luthier.training.decoder import OUTPUT_LAYER
from luthier.training.lora import LoraLinear
from luthier.training.weights import Weight, WeightsFile, hold, read_folder

Kind = Literal["adapter", "merged", "model"]

# What stands beside the weights of the base model and is still true of the new ones. config.json goes with full
# weights only: beside an adapter, transformers would take the folder for a whole model.
COPIED = (
    "LICENSE",  # the base model's terms go with everything that is made from it
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Exporter:
    """Writes archives of the weights as they are now. ``adapted`` is empty when every weight is trained.

    Names, order and types of full weights are those of the base model's files.
    """

    run_directory: Path
    spec: TrainingSpec
    parameters: Mapping[str, nn.Parameter]
    adapted: Mapping[str, LoraLinear]

    def save_checkpoint(self, step: int, results: Results) -> CheckpointSaved:
        """Write the trained weights of an intermediate step."""
        kind: Literal["adapter", "model"] = "adapter" if self.adapted else "model"
        exported = self._write(kind, step, results, f"{layout.CHECKPOINTS_DIR}/step-{step:06}.tar.zst")
        return CheckpointSaved(step=step, kind=kind, archive=exported.archive, eval_loss=results.eval_loss)

    def list_outputs(self) -> tuple[Kind, ...]:
        """Return what ``save_output`` is to write at the end."""
        return ("adapter", "merged") if self.adapted else ("model",)

    def save_output(self, kind: Kind, step: int, results: Results) -> Exported:
        """Write one output archive."""
        return self._write(kind, step, results, f"{layout.OUTPUT_DIR}/{kind}.tar.zst")

    def _write(self, kind: Kind, step: int, results: Results, path: str) -> Exported:
        digest = WeightsDigest()
        base = Path(self.spec.base_model.path)
        with read_folder(base) as base_weights:
            members = [
                *_copy(base, COPIED if kind == "adapter" else (*COPIED, "config.json")),
                make_member("README.md", write_card(self.spec, kind, step, results)),
                *self._list_weights(kind, base_weights, digest),
            ]
            threads = self.spec.device.threads
            entry = write_archive(self.run_directory, path, members, threads=threads)
        return Exported(kind=kind, step=step, archive=entry, weights_sha256=digest.hexdigest())

    def _list_weights(self, kind: Kind, base: Mapping[str, Weight], digest: WeightsDigest) -> list[Member]:
        if kind == "adapter":
            return [
                make_member("adapter_config.json", self._describe_adapter()),
                digest.make_member("adapter_model.safetensors", hold(self._name_adapter_weights())),
            ]
        # A copy of tied embeddings stays behind: it would be that of the base model.
        stored = [weight for weight in base.values() if weight.name != OUTPUT_LAYER or OUTPUT_LAYER in self.parameters]
        weights = [self._merge(weight) if kind == "merged" else self._take_trained(weight) for weight in stored]
        return [digest.make_member("model.safetensors", WeightsFile(weights))]

    def _merge(self, weight: Weight) -> Weight:
        adapter = self.adapted.get(weight.name.removesuffix(".weight"))
        if adapter is None or not weight.name.endswith(".weight"):
            return weight

        def compute() -> Tensor:
            return adapter.merge(weight.compute().to(adapter.lora_a.device))

        return Weight(weight.name, weight.dtype, weight.shape, compute)

    def _take_trained(self, weight: Weight) -> Weight:
        parameter = self.parameters.get(weight.name)
        if parameter is None:  # a buffer that an older program saved
            return weight
        return Weight(weight.name, weight.dtype, weight.shape, lambda: parameter.to(weight.dtype))

    def _name_adapter_weights(self) -> dict[str, Tensor]:
        """Return the adapter's tensors under PEFT's names."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.adapted.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_a
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_b
        return tensors

    def _describe_adapter(self) -> str:
        """Return PEFT's adapter_config.json; what is not named has PEFT's default."""
        lora = self.spec.hyperparameters.training_type
        assert isinstance(lora, Lora), f"an adapter of {lora}"
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.spec.base_model.repository or self.spec.base_model.name,
            "inference_mode": True,
            "r": lora.r,
            "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # as PEFT itself writes it
            "lora_dropout": lora.dropout,
            "target_modules": sorted({name.rpartition(".")[2] for name in self.adapted}),
            "bias": "none",
            "fan_in_fan_out": False,
        }
        return json.dumps(config, indent=2) + "\n"


def _copy(folder: Path, names: Iterable[str]) -> list[Member]:
    return [make_member(name, (folder / name).read_bytes()) for name in names if (folder / name).is_file()]
