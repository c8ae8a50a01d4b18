"""What of many architectures runs through rules: generic nodes, exactness and agreement, as a table.

Examples:
    python benchmarks/coverage.py resnet18 gpt2 --dtype float32
    python benchmarks/coverage.py --list
    python benchmarks/coverage.py --page docs/coverage.md        # all models, as the page of the documentation
    python benchmarks/coverage.py --extra /path/to/packages      # where transformers and diffusers lie, if apart

Every model that is done goes to a file of results (--results), and is not run again: an interrupted run goes on where
it was, and --again runs the models named, or all, anew.  Models have random weights and the smallest size that keeps
their structure; transformers' decoders read embeddings.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

import specxai
from specxai._files import replacing
from specxai._text import printable
from specxai._vision import import_vision
from specxai.affine.agreement import INEXACT

BOUNDS = {"float64": 1e-10, "float32": 1e-3}  # of exactness and agreement
ROUNDED = 1e-6  # the same in float64, where the model casts to float32 itself, or torch's derivative has fewer digits
PAGE = """# Coverage

{good} of {run} architectures run without a generic node, with exactness and agreement of at most {bound_64} in float64
and {bound_32} in float32, under both policies.  Models are as their libraries make them, unmodified, with their default
attention, with random weights, and at the smallest size that keeps their structure
({versions}).

*Exactness* compares the two routes to the bias, *agreement* compares J with torch's own derivative of the model, or,
for frozen gates, of the model with those factors detached; [certificates](certificates.md) says what each shows.  A
*generic node* is an op without a rule, which runs through torch's own derivative, one probe at a time.  A model that
*casts* computes a part, such as the scale of its norms, in float32 whatever its dtype, and rounds as that does.  Where
torch's own derivative is wrong, as that of its batch norm is for some strides, central *differences* of the model's
forward pass decide; its hardsigmoid holds a *constant* in single precision.  In these three cases {bound_rounded} is
asked of float64.  The page is written by

    python benchmarks/coverage.py --results build/coverage.jsonl --page docs/coverage.md

{table}
"""

TORCHVISION = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "resnet50": 32, "densenet121": 32, "googlenet": 32,
    "inception_v3": 96, "squeezenet1_1": 32, "shufflenet_v2_x1_0": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "mnasnet1_0": 32, "regnet_y_400mf": 32, "regnet_x_400mf": 32, "resnext50_32x4d": 32, "wide_resnet50_2": 32,
    "efficientnet_b0": 32, "efficientnet_v2_s": 32, "convnext_tiny": 32, "vit_b_16": 32, "swin_t": 32, "swin_v2_t": 32,
    "maxvit_t": 224, "vgg13": 32, "densenet169": 32}
TIMM = {
    "vit_tiny_patch16_224": 32, "deit_tiny_patch16_224": 32, "cait_xxs24_224": 32, "xcit_nano_12_p16_224": 32,
    "levit_128s": 224, "mixer_s32_224": 64, "resmlp_12_224": 32, "gmlp_ti16_224": 32, "convmixer_768_32": 28,
    "poolformer_s12": 32, "coatnet_nano_rw_224": 224, "beit_base_patch16_224": 32, "eva02_tiny_patch14_224": 28,
    "mobilevit_xxs": 64, "edgenext_xx_small": 64, "convnextv2_atto": 32, "efficientformer_l1": 224,
    "nf_resnet50": 32, "ecaresnet26t": 64, "crossvit_tiny_240": 240}

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}


class Embedded(nn.Module):
    """A model of transformers on embeddings, its first tensor of interest as the output."""

    def __init__(self, model: nn.Module, name: str = "inputs_embeds", output: str | None = None, **settings) -> None:
        super().__init__()
        self.model, self.name, self.output, self.settings = model, name, output, settings

    def forward(self, x: Tensor) -> Tensor:
        found = self.model(**{self.name: x}, **self.settings)
        return found[self.output] if self.output else found[0]


class Conditional(nn.Module):
    """A U-Net with the words that it is told, in the model's dtype."""

    def __init__(self, unet: nn.Module, words: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("words", words)

    def forward(self, x: Tensor) -> Tensor:
        self.unet.settings["encoder_hidden_states"] = self.words
        return self.unet(x)


def _decoder(family: str, **config) -> Callable[[], tuple[nn.Module, tuple[int, ...]]]:
    def make():
        import transformers
        made = getattr(transformers, f"{family}Config")(vocab_size=40, **config)
        model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))(made)
        width = config.get("hidden_size", config.get("n_embd"))
        return Embedded(model, use_cache=False), (1, 6, width)

    return make


def _gemma3():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    config = Gemma3TextConfig(vocab_size=40, sliding_window=4, **GROUPED)
    return Embedded(Gemma3ForCausalLM(config), use_cache=False), (1, 6, 32)


def _t5():
    from transformers import T5Config, T5EncoderModel
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return Embedded(T5EncoderModel(config)), (1, 6, 32)


def _bert():
    from transformers import BertConfig, BertModel
    config = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return Embedded(BertModel(config)), (1, 6, 32)


def _vit():
    from transformers import ViTConfig, ViTModel
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16,
                       patch_size=4)
    return Embedded(ViTModel(config), "pixel_values"), (1, 3, 16, 16)


def _clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel
    config = CLIPVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                              image_size=16, patch_size=4)
    return Embedded(CLIPVisionModel(config), "pixel_values"), (1, 3, 16, 16)


def _whisper():
    from transformers import WhisperConfig, WhisperModel
    config = WhisperConfig(vocab_size=60, num_mel_bins=8, d_model=32, encoder_layers=2, encoder_attention_heads=4,
                           decoder_layers=1, decoder_attention_heads=4, encoder_ffn_dim=64, max_source_positions=16,
                           pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return Embedded(WhisperModel(config).encoder, "input_features"), (1, 8, 32)


def _mamba():
    from transformers import MambaConfig, MambaModel
    config = MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2)
    return Embedded(MambaModel(config), use_cache=False), (1, 5, 16)


def _unet():
    from diffusers import UNet2DModel
    model = UNet2DModel(sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
                        down_block_types=("DownBlock2D", "AttnDownBlock2D"), norm_num_groups=4, attention_head_dim=8,
                        up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return Embedded(model, "sample", "sample", timestep=3), (1, 3, 16, 16)


def _conditional_unet():
    from diffusers import UNet2DConditionModel
    model = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4, attention_head_dim=8, cross_attention_dim=12)
    words = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(1))
    return Conditional(Embedded(model, "sample", "sample", timestep=3), words), (1, 4, 8, 8)


def _dit():
    from diffusers import DiTTransformer2DModel
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2,
                                  sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4)
    settings = {"timestep": torch.tensor([3]), "class_labels": torch.tensor([1])}
    return Embedded(model, "hidden_states", "sample", **settings), (1, 4, 8, 8)


OTHERS = {
    "gpt2": _decoder("GPT2", n_embd=32, n_layer=2, n_head=4), "llama": _decoder("Llama", **GROUPED),
    "qwen3": _decoder("Qwen3", **GROUPED),
    "gemma3": _gemma3, "opt": _decoder(
        "OPT", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32),
    "gpt neox": _decoder("GPTNeoX", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64),
    "t5 encoder": _t5, "bert": _bert, "vit": _vit, "clip vision": _clip, "whisper encoder": _whisper, "mamba": _mamba,
    "diffusers unet": _unet, "conditional unet": _conditional_unet, "diffusers dit": _dit}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The model, and the shape of its input."""
    with contextlib.suppress(ImportError):
        import_vision("torchvision")  # before transformers asks for it
    torch.manual_seed(0)
    if name in TORCHVISION:
        models, size, settings = import_vision("torchvision.models"), TORCHVISION[name], {}
        if name in ("googlenet", "inception_v3"):
            settings = {"init_weights": False, "aux_logits": False}
        if name == "vit_b_16":
            settings = {"image_size": size}
        return getattr(models, name)(weights=None, **settings), (1, 3, size, size)
    if name in TIMM:
        timm, size = import_vision("timm"), TIMM[name]
        try:
            return timm.create_model(name, pretrained=False, img_size=size), (1, 3, size, size)
        except TypeError:  # has no fixed size
            return timm.create_model(name, pretrained=False), (1, 3, size, size)
    return OTHERS[name]()


def randomise(model: nn.Module) -> None:
    """Statistics, gains and biases that are not the zeros and ones of a fresh model."""
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif not parameter.any():  # a head that begins at zero
                parameter.normal_(0, 0.02)


def measure(name: str, dtype: str, gates: str) -> dict:
    """A row of results."""
    model, shape = build(name)
    randomise(model)
    model = model.eval().to(getattr(torch, dtype))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local = specxai.linearize(model, x, gates=gates, backend="reference")
    generic = Counter(node.partition(": ")[2].partition(" (")[0] for node in local.generic_nodes)
    widths = [found.itemsize for found in local._dtypes.values() if found.is_floating_point]
    return {"model": name, "gates": gates, "dtype": dtype, "nodes": len(local.graph.nodes),
            "generic": dict(sorted(generic.items())), "exactness": local.exactness, "agreement": local.agreement,
            "witness": local.agreement_details.witness, "casts": min(widths) < x.itemsize,
            "inexact": any(step.target in INEXACT for step in local.captured.program.steps),
            "seconds": time.perf_counter() - start}


def attempt(name: str, dtype: str, gates: str) -> dict:
    """The same, with the first line of the error where the model fails: the table goes on."""
    try:
        return measure(name, dtype, gates)
    except Exception as error:
        text = (str(error).strip() or repr(error)).splitlines()[0]
        return {"model": name, "gates": gates, "dtype": dtype, "error": f"{type(error).__name__}: {text[:300]}"}
    finally:
        gc.collect()


class Results:
    """Rows by (model, policy, dtype), kept in a file of JSON lines; a later line of the same key counts."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, {}
        if path is not None and path.is_file():
            for line in path.read_text().splitlines():
                self._take(json.loads(line))

    def _take(self, row: dict) -> None:
        self.rows[row["model"], row["gates"], row["dtype"]] = row

    def add(self, rows: list[dict]) -> None:
        for row in rows:
            self._take(row)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def passes(row: dict) -> bool:
    """Do both certificates hold, without a generic node?"""
    if "error" in row or row["generic"] or row["agreement"] is None:
        return False
    rounded = row["casts"] or row.get("inexact") or row["witness"] == "central difference"
    return max(row["exactness"], row["agreement"]) <= max(rounded * ROUNDED, BOUNDS[row["dtype"]])


def line(rows: dict[str, dict]) -> str:
    """A line of the table, from the rows of one model and policy by dtype."""
    some = next(iter(rows.values()))
    cells = [some["model"], some["gates"]]
    if found := next((row["error"] for row in rows.values() if "error" in row), None):
        return f"| {' | '.join(cells)} | – | failed: {printable(found).replace('|', '/')} |" + " – |" * 5
    generic = ", ".join(f"{op} × {count}" for op, count in some["generic"].items()) or "none"
    cells += [str(some["nodes"]), generic]
    for dtype in BOUNDS:
        row = rows.get(dtype)
        cells += ["–", "–"] if row is None else [f"{row['exactness']:.0e}", f"{row['agreement']:.0e}"]
    notes = ["yes"] + ["casts"] * any(row["casts"] for row in rows.values())
    notes += ["constant"] * any(row.get("inexact", False) for row in rows.values())
    notes += ["differences"] * any(row["witness"] == "central difference" for row in rows.values())
    cells.append(", ".join(notes) if all(passes(row) for row in rows.values()) else "**no**")
    return f"| {' | '.join(cells)} |"


def table(results: Results, names: list[str], policies: list[str]) -> str:
    """Markdown: a line for each model and policy that has been run."""
    lines = ["| model | gates | nodes | generic nodes | exactness float64 | agreement float64 | exactness float32 | "
             "agreement float32 | holds |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name in names:
        for gates in policies:
            rows = {dtype: results.rows[name, gates, dtype] for dtype in BOUNDS if (name, gates, dtype) in results.rows}
            if rows:
                lines.append(line(rows))
    return "\n".join(lines)


def page(results: Results, names: list[str], policies: list[str]) -> str:
    """docs/coverage.md."""
    kinds = [(gates, dtype) for gates in policies for dtype in BOUNDS]
    run = [name for name in names if any((name, *kind) in results.rows for kind in kinds)]
    good = [name for name in run if all(passes(results.rows.get((name, *kind), {"error": ""})) for kind in kinds)]
    versions = ", ".join(f"{package} {version}" for package, version in _versions())
    bounds = {"bound_64": BOUNDS["float64"], "bound_32": BOUNDS["float32"], "bound_rounded": ROUNDED}
    return PAGE.format(good=len(good), run=len(run), versions=versions, table=table(results, names, policies),
                       **{name: f"{bound:.0e}".replace("e-0", "e-") for name, bound in bounds.items()})


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in ("torch", "torchvision", "timm", "transformers", "diffusers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((package, metadata.version(package)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; the default is all")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--dtype", nargs="+", choices=list(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--gates", nargs="+", default=["tangent", "frozen"], help="policies")
    parser.add_argument("--extra", help="a folder of further packages")
    parser.add_argument("--results", type=Path, help="a file that keeps the rows of finished models")
    parser.add_argument("--again", action="store_true", help="run models that are in the file anew")
    parser.add_argument("--page", type=Path, help="write the page of the documentation there")
    settings = parser.parse_args()
    if settings.extra:
        sys.path.append(settings.extra)
    names = [*TORCHVISION, *TIMM, *OTHERS]
    if settings.list:
        print("\n".join(names))
        return 0
    if unknown := [name for name in settings.models if name not in names]:
        parser.error(f"no model {unknown[0]!r}; --list shows the names")
    torch.set_num_threads(1)
    wanted, results = settings.models or names, Results(settings.results)
    for name in wanted:
        for dtype in settings.dtype:
            missing = [gates for gates in settings.gates
                       if settings.again or (name, gates, dtype) not in results.rows]
            for gates in missing:
                results.add([row := attempt(name, dtype, gates)])
                print(f"{name} {dtype} {gates}: {row.get('error', 'done')}", file=sys.stderr, flush=True)
    if settings.page is not None:
        with replacing(settings.page) as draft:
            draft.write_text(page(results, names, settings.gates), encoding="utf-8")
    print(table(results, wanted, settings.gates))
    failed = [row for key, row in results.rows.items() if key[0] in wanted and not passes(row)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
