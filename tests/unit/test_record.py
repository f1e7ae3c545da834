"""Records made by hand: lookups, averages, words, rows, and the file."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffuseg import ops
from diffuseg.attention import AttentionRecord, memory
from diffuseg.attention.calls import output_tensor
from diffuseg.attention.captured import (
    CapturedPass,
    Contents,
    RecordHeader,
    ReducedMap,
    find_tokens,
)
from diffuseg.attention.layers import LayerId, as_tuple
from diffuseg.attention.record_file import FORMAT
from diffuseg.errors import CaptureError, InputError
from diffuseg.prompts import TokenSpan

TOKENS = ("<|startoftext|>", "a</w>", "hot</w>", "do", "g</w>", "on</w>", "<|endoftext|>")
HEADER = RecordHeader(
    model="mini",
    prompts=("a hot dog on", ""),
    tokens=(TOKENS, ("<|startoftext|>", *("<|endoftext|>",) * 6)),
    spans=(TokenSpan(name="Hot Dog", row=0, tokens=(2, 3, 4)),),
    names=("Hot Dog",),
    timesteps=(300, 0.25),
    seed=7,
    image_hw=(480, 640),
    input_hw=(32, 48),
    latent_hw=(4, 6),
    provenance={"image": "dög.png", "strength": 0.5, "seed": None},
)


def layer(name, kind, factor, heads=2):
    return LayerId(
        name=name, stage="up", block=0, index=0, depth=0, kind=kind, heads=heads, width=4,
        scale=0.5, factor=factor,
    )  # fmt: skip


LAYERS = (
    layer("up.0.attn1", "self", 1),
    layer("up.0.attn2", "cross", 1),
    layer("up.1.attn1", "self", 1, heads=3),
    layer("up.1.attn2", "cross", 2),
)
GRIDS = {"up.0.attn1": (4, 6), "up.0.attn2": (4, 6), "up.1.attn1": (4, 6), "up.1.attn2": (2, 3)}


def one_pass(step, seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    captured = CapturedPass(step)
    for one in LAYERS:
        n = GRIDS[one.name][0] * GRIDS[one.name][1]
        m = n if one.kind == "self" else len(TOKENS)
        # As hooks leave them: views with the heads in the middle.
        q = torch.randn(batch, n, 4 * one.heads, generator=generator)
        k = torch.randn(batch, m, 4 * one.heads, generator=generator)
        captured.queries[one.name] = ops.split_heads(q, one.heads)
        captured.keys[one.name] = ops.split_heads(k, one.heads)
    bias = torch.zeros(batch, 1, len(TOKENS))
    bias[:, :, -1] = -10000.0
    captured.biases.update({"up.0.attn2": bias, "up.1.attn2": bias})
    captured.features["mid_block"] = torch.randn(batch, 5, 2, 3, generator=generator)
    return captured


@pytest.fixture
def contents():
    passes = [one_pass(300, 0), one_pass(0.25, 1)]
    return Contents(header=HEADER, layers=LAYERS, grids=dict(GRIDS), passes=passes)


@pytest.fixture
def record(contents):
    return AttentionRecord(contents)


def test_what_there_is(record):
    assert repr(record) == (
        "AttentionRecord(mini: 2 self, 2 cross layers, grids 4x6 2x3, steps 300, 0.25, batch 2, "
        "features mid_block, 0.0 MB)"
    )
    assert record.batch == 2
    assert record.timesteps == (300, 0.25)
    assert record.grid("up.1.attn2") == (2, 3)
    assert record.grids("cross") == ((4, 6), (2, 3))
    assert record.features("mid_block", 300).shape == (2, 5, 2, 3)
    assert record.queries(LAYERS[0], 0.25).shape == (2, 2, 24, 4)
    assert record.keys("up.0.attn2", 300).shape == (2, 2, 7, 4)


def test_averages(record):
    each = [record.head_maps("up.0.attn1", step) for step in (300, 0.25)]
    expected = ops.head_maps(
        record.queries("up.0.attn1", 300), record.keys("up.0.attn1", 300), scale=0.5
    )
    assert torch.equal(each[0], expected)
    torch.testing.assert_close(record.maps("up.0.attn1", 300), each[0].mean(1))
    torch.testing.assert_close(record.maps("up.0.attn1"), torch.cat(each, 1).mean(1))
    torch.testing.assert_close(record.maps("up.0.attn1", 300, heads=[1]), each[0][:, 1])
    others = [record.head_maps("up.1.attn1", step) for step in (300, 0.25)]
    # Five heads of two layers, twice: each counts the same.
    torch.testing.assert_close(
        record.self_attention(), torch.cat([*each, *others], 1).mean(1), rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(record.self_attention(layers="up.0.*", step=300), each[0].mean(1))
    found = record.self_attention((4, 6), heads=[0])
    heads = torch.stack([one[:, 0] for one in (*each, *others)])
    torch.testing.assert_close(found, heads.mean(0), rtol=1e-5, atol=1e-7)
    assert (record.cross_attention(level=2)[..., -1] == 0).all()  # masked


def test_words(record):
    found = record.cross("hot dog")
    assert found.shape == (1, 4, 6)
    fine = record.cross_attention(level=1)[:1, :, [2, 3, 4]].mean(-1).unflatten(1, (4, 6))
    coarse = record.cross_attention(level=2)[:1, :, [2, 3, 4]].mean(-1).unflatten(1, (2, 3))
    large = ops.resize(coarse[:, None], (4, 6))[:, 0]
    torch.testing.assert_close(found, (fine + large) / 2)
    torch.testing.assert_close(record.cross("hot dog", levels=2), coarse)
    torch.testing.assert_close(record.cross("HOT DOG", levels=[1], layers="up.0.*"), fine)
    assert record.cross("dog", (8, 8)).shape == (1, 8, 8)  # not a class, but in the prompt
    assert record.cross(1).shape == record.cross([1, 5]).shape == (2, 4, 6)  # every row


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda r: r.cross("cat"), "one of: Hot Dog, a, hot, dog, on"),
        (lambda r: r.cross(7), "recorded: 0 to 6"),
        (lambda r: r.cross(()), "among those recorded"),
        (lambda r: r.cross(1, levels=8), "recorded grids: 4x6, 2x3"),
        (lambda r: r.cross_attention(), "hw= one of (4, 6), (2, 3)"),
        (lambda r: r.self_attention((5, 5)), "recorded grids: 4x6"),
        (lambda r: r.self_attention(layers="mid.*"), "self-attention of that grid"),
        (lambda r: r.self_attention(step=200), "recorded: 300, 0.25"),
        (lambda r: r.maps("up.0.attn3"), "for example up.0.attn"),
        (lambda r: r.maps("up.0.attn1", 1), "recorded: 300, 0.25"),
        (lambda r: r.maps("up.0.attn1", heads=[2]), "among the 2 recorded"),
        (lambda r: r.maps("up.0.attn1", heads=[]), "heads must be"),
        (lambda r: r.queries("up.0.attn1"), "step= one of 300, 0.25"),
        (lambda r: r.features("conv", 300), "recorded: mid_block"),
        (lambda r: r.rows(2), "among the 2"),
        (lambda r: r.rows([]), "count from 0"),
        (lambda r: r.rows(slice(2, 2)), "count from 0"),
    ],
)
def test_what_is_not_there(record, ask, text):
    with pytest.raises(InputError) as error:
        ask(record)
    assert text in str(error.value)


def test_an_empty_record():
    record = AttentionRecord(Contents())
    assert record.batch == record.nbytes == 0
    for ask in (record.self_attention, lambda: record.maps("x"), lambda: record.cross(1)):
        with pytest.raises(InputError):
            ask()
    with pytest.raises(InputError, match="no layer was recorded"):
        record.grid("x")
    with pytest.raises(InputError, match="recorded: none"):
        record.features("x")


# ---- rows of the batch


def test_rows(record):
    for index in (1, -1, [1], slice(1, 2)):
        part = record.rows(index)
        assert part.batch == 1
        assert torch.equal(part.self_attention(), record.self_attention()[1:])
        assert torch.equal(part.cross_attention(level=2), record.cross_attention(level=2)[1:])
        assert torch.equal(part.features("mid_block", 300), record.features("mid_block", 300)[1:])
        assert part.header.prompts == ("",)
        assert part.header.spans == ()
    turned = record.rows([1, 0])
    assert turned.header.spans == (replace(HEADER.spans[0], row=1),)
    assert torch.equal(turned.cross("hot dog"), record.cross("hot dog"))
    q = record.rows(slice(0, 1)).queries("up.0.attn1", 300)
    assert q.data_ptr() == record.queries("up.0.attn1", 300).data_ptr()


def test_prompts_shared_by_rows(contents):
    contents.passes = [one_pass(300, 0, batch=6)]
    contents.header = replace(HEADER, timesteps=())
    record = AttentionRecord(contents)
    assert record.cross("dog").shape == (3, 4, 6)  # three images of each of two prompts
    assert record.rows(4).header.prompts == ("",)
    contents.header = replace(HEADER, prompts=("a",), tokens=(), spans=HEADER.spans)
    assert record.cross("hot dog").shape == (6, 4, 6)
    contents.header = replace(HEADER, prompts=("a",) * 4)
    with pytest.raises(InputError, match="4 prompts for a batch of 6"):
        record.cross("dog")


def test_temporal_layers_have_no_rows(contents):
    contents.layers = (*LAYERS, layer("up.2.attn1", "temporal", 1))
    with pytest.raises(InputError, match="spatial layers only"):
        AttentionRecord(contents).rows(0)


def test_another_header(record):
    other = record.with_header(replace(HEADER, names=("dog",)))
    assert other.header.names == ("dog",)
    assert record.header.names == ("Hot Dog",)
    assert torch.equal(other.self_attention(), record.self_attention())


def test_finding_tokens():
    assert find_tokens(TOKENS, "dog") == (3, 4)
    assert find_tokens(TOKENS, " HOT  dog ") == (2, 3, 4)
    assert find_tokens(TOKENS, "do") == find_tokens(TOKENS, "") == ()
    assert find_tokens(("[CLS]", "a", "dog", "a", "[SEP]"), "a") == (1, 3)
    assert find_tokens(("<|startoftext|>", "dog</w>", "dog</w>"), "dog") == (1, 2)


# ---- the file


@pytest.fixture
def saved(contents, tmp_path):
    values = torch.rand(2, 24, 7)
    contents.reduced = [
        ReducedMap(kind="cross", hw=(4, 6), tokens=(2, 0, 1), pooled=True, count=9, values=values)
    ]
    AttentionRecord(contents).save(tmp_path / "new" / "dog.safetensors")
    return tmp_path / "new" / "dog.safetensors"


def test_a_loaded_record_is_the_same(contents, saved):
    record, loaded = AttentionRecord(contents), AttentionRecord.load(saved)
    assert loaded.header == record.header
    assert type(loaded.header.timesteps[0]) is int
    assert loaded.layers == record.layers
    assert repr(loaded) == repr(record)
    for one in LAYERS:
        assert loaded.grid(one) == record.grid(one)
        assert torch.equal(loaded.maps(one), record.maps(one))
        assert torch.equal(loaded.queries(one, 300), record.queries(one, 300))
    assert torch.equal(loaded.features("mid_block", 0.25), record.features("mid_block", 0.25))
    assert torch.equal(loaded.reduced[0].values, record.reduced[0].values)
    assert replace(loaded.reduced[0], values=record.reduced[0].values) == record.reduced[0]
    assert torch.equal(loaded.cross("hot dog"), record.cross("hot dog"))
    assert [path.name for path in saved.parent.iterdir()] == ["dog.safetensors"]


def test_half_precision_is_kept(contents, tmp_path):
    for part in contents.passes:
        for tensors in (part.queries, part.keys):
            tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}
    record = AttentionRecord(contents)
    record.save(tmp_path / "x.safetensors")
    loaded = AttentionRecord.load(tmp_path / "x.safetensors")
    assert loaded.queries("up.0.attn1", 300).dtype == torch.bfloat16
    assert torch.equal(loaded.maps("up.0.attn1"), record.maps("up.0.attn1"))


def test_the_header_is_readable(saved):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert metadata["format"] == FORMAT
    header = json.loads(metadata["header"])
    assert header["prompts"] == ["a hot dog on", ""]
    assert header["spans"] == [{"name": "Hot Dog", "row": 0, "tokens": [2, 3, 4]}]
    assert header["provenance"]["image"] == "dög.png"
    assert "dög.png" in metadata["header"]
    assert {"0/up.0.attn1/q", "1/up.1.attn2/bias", "0/feature/mid_block", "reduced/0"} <= names


def test_no_model_is_needed_to_read_one(saved):
    code = (
        "import sys; from diffuseg.attention import AttentionRecord\n"
        f"print(AttentionRecord.load({str(saved)!r}).cross('dog').shape)\n"
        "assert not {'diffusers', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 4, 6])"


def test_files_that_are_no_records(saved, tmp_path):
    with pytest.raises(InputError, match="must be a file that exists"):
        AttentionRecord.load(tmp_path / "missing.safetensors")
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(InputError, match="whole safetensors file"):
        AttentionRecord.load(path)
    path.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(InputError, match="copy the file again"):
        AttentionRecord.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="of the format unknown"):
        AttentionRecord.load(path)
    save_file({"weight": torch.zeros(1)}, path, metadata={"format": "diffuseg-record-9"})
    with pytest.raises(InputError, match="version of diffuseg that wrote it"):
        AttentionRecord.load(path)
    with pytest.raises(InputError, match="add a file name"):
        AttentionRecord.load(saved).save(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("1/up.0.attn1/k", None),
        ("1/up.0.attn1/q", torch.zeros(2, 2, 23, 4)),
        ("0/up.0.attn1/k", torch.zeros(2, 3, 24, 4)),
        ("0/up.0.attn1/q", torch.zeros(2, 24, 4)),
        ("reduced/0", torch.zeros(2, 23, 7)),
        ("reduced/0", None),
        ("5/up.0.attn1/q", torch.zeros(1)),
        ("0/up.0.attn1/z", torch.zeros(1)),
    ],
)
def test_damaged_records(saved, name, tensor):
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors.pop(name, None)
    tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, saved, metadata=metadata)
    with pytest.raises(InputError, match="written by AttentionRecord"):
        AttentionRecord.load(saved)


# ---- small parts


def test_available_memory(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert (memory.available_bytes(cpu) or 1) > 0
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    assert (memory.available_bytes(cpu) or 1) > 0
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 99 kB\nMemAvailable:   12 kB\nHugePages_Total: 0\n\n")
    monkeypatch.setattr(memory, "_MEMINFO", file)
    assert memory.available_bytes(cpu) == 12 * 1024
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    assert memory.available_bytes(cpu) is None


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 bytes"), (1500, "1.5 kB"), (71.6e6, "71.6 MB"), (3e9, "3.0 GB")]
)
def test_sizes_for_people(count, text):
    assert memory.readable_bytes(count) == text


def test_outputs_of_modules():
    tensor = torch.zeros(1)
    assert output_tensor(tensor) is output_tensor((tensor, ())) is tensor
    assert output_tensor(type("Output", (), {"sample": tensor})()) is tensor
    for other in ((), ("x",), None):
        with pytest.raises(CaptureError, match="returns a tensor"):
            output_tensor(other)


def test_one_or_several():
    assert as_tuple("x", str, "") == as_tuple(["x"], str, "") == as_tuple({"x"}, str, "") == ("x",)
    for bad in (3, None, ["x", 3], b"x"):
        with pytest.raises(InputError, match="pass one str or a tuple of them"):
            as_tuple(bad, str, "names must be text")
    with pytest.raises(InputError):
        as_tuple(True, int, "")


def test_a_part_has_what_was_asked_for_alone(contents):
    record = AttentionRecord(contents)
    part = record.only("up.0.*", steps=[0.25])
    assert [one.name for one in part.layers] == ["up.0.attn1", "up.0.attn2"]
    assert part.timesteps == part.header.timesteps == (0.25,)
    assert part.nbytes < record.nbytes / 2
    whole = record.maps("up.0.attn2", step=0.25)
    assert torch.equal(part.cross_attention(level=1), whole)
    assert part.queries("up.0.attn1").data_ptr() == record.queries("up.0.attn1", 0.25).data_ptr()
    assert record.only("up.0.*").timesteps == (300, 0.25)
    with pytest.raises(InputError, match="layers must match recorded ones"):
        record.only("down.*")
    with pytest.raises(InputError, match="the step must be a recorded timestep"):
        record.only(steps=[7])


def test_a_part_of_means_is_refused():
    mean = ReducedMap(kind="self", hw=(2, 2), count=1, values=torch.zeros(1, 4, 4))
    with pytest.raises(InputError, match="where queries and keys were kept"):
        AttentionRecord(Contents(reduced=[mean])).only("*")
