#!/usr/bin/env python3
"""Fetches the chat templates of some seventy models, which tests render, into the model cache, templates/.

From the sdist llama-cpp-python 0.3.36 (77 MB, MIT), which is checked by its SHA-256. The vocabularies that
get_tokenizers.py --long takes from the same file are kept too, so that it is fetched once. The folder is
written under a temporary name and renamed. Uses the standard library alone. Prints the folder.
"""

import os
import pathlib
import shutil
import tarfile
import tempfile

import get_tokenizers
from get_model import cache_dir

SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = "/vendor/llama.cpp/models/templates/"


def template_members(archive):
    return [m for m in archive.getmembers() if FOLDER in m.name and m.name.endswith(".jinja")]


def keep_templates(archive, scratch, target):
    folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    for member in template_members(archive):
        (folder / pathlib.PurePath(member.name).name).write_bytes(archive.extractfile(member).read())
    (folder / "sha256").write_text(SHA256)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(folder, target)


def main():
    target = cache_dir() / "templates"
    stamp = target / "sha256"
    if not (stamp.exists() and stamp.read_text() == SHA256):
        (cache_dir() / "tokenizers").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir()) as scratch:
            sdist = get_tokenizers.download_sdist(scratch)
            get_tokenizers.checked(sdist.read_bytes(), SHA256, sdist.name)
            with tarfile.open(sdist) as archive:
                keep_templates(archive, scratch, target)
                get_tokenizers.keep_sdist_vocabularies(archive, scratch)
    print(target)


if __name__ == "__main__":
    main()
