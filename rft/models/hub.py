"""Models of the Hugging Face hub: only data files are fetched, and kept in the hub's own cache."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from rft.errors import ModelError

FETCHED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
"""Weights, configs, tokenizers; code runs only under engine.model.trust_remote_code."""
LEFT_OUT = ["original/*", "onnx/*", "consolidated*.safetensors"]
"""The same weights again in other forms."""


def hub_folder(name: str) -> Path:
    """The snapshot of `owner/name`, fetched unless it is there; HF_HUB_OFFLINE is honoured.

    Raises ModelError, whatever the reason it cannot be had.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=FETCHED, ignore_patterns=LEFT_OUT))
    except GatedRepoError as error:
        raise ModelError(
            f"the hub model {name!r} is gated",
            remedy=f"ask for access at huggingface.co/{name}, then `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {name!r}: neither a folder here nor a model of the hub",
            where="model",
            remedy="check the spelling; for a private model, `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"no model {name!r}: no folder of that name, and the hub cannot be reached (no network,"
            " or HF_HUB_OFFLINE is set) and has not been asked for it before",
            where="model",
            remedy="fetch it where there is network, or name a model folder",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"cannot fetch {name!r} from the hub: {str(error).strip().splitlines()[0]}",
            where="model",
            remedy="try again, or name a model folder",
        ) from error
