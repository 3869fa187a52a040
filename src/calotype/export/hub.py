"""`calotype push`: a folder to the Hugging Face hub, with the package huggingface-hub and the login that it keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from calotype.export.bundle import require_packages
from calotype.files import damage, read_manifest
from calotype.types import UserError

HTTP_CLIENTS = {"httpcore", "httpx", "httpx2", "requests", "urllib3"}
"""One of which the package uses, by its version."""


def push(folder: Path, name: str, private: bool = True, beside: Sequence[str] = ()) -> str:
    """Uploads a model's folder, or an exported one, to the repository `name`, and returns its address.

    The files of its manifest, and those of `beside` that it has; nothing else that was put into the folder, such as a
    text encoder. The repository is made where there is none. Raises `UserError` where the package is missing, the
    folder is damaged, the hub refuses, or it cannot be reached.
    """
    require_packages("huggingface_hub", extra="hub")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name):
        raise UserError(f"the repository is {name!r:.80}, expected OWNER/NAME")
    if wrong := damage(folder):
        raise UserError(f"{folder} is not a model or an export that is whole ({wrong}); give the folder of one")
    hub, own = HfApi(library_name="calotype"), [*read_manifest(folder), "manifest.json", *beside]
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from Calotype", allow_patterns=own)
    except LocalTokenNotFoundError:
        raise UserError("the hub does not know you; try: hf auth login") from None
    except (HfHubHTTPError, ValueError) as error:  # also a name that breaks its rules
        raise UserError(f"the hub refused {name}: {str(error).splitlines()[0]:.200}") from None
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in HTTP_CLIENTS:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the hub cannot be reached ({reason:.200}); check the connection, and try again") from None
    return str(address)
