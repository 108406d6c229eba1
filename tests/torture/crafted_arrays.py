"""Arrays and groups of a segment: links, foreign types, wrong shapes and values, and much in a small file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.torture.resum import resum_segment
from tests.torture.strange import SEGMENT, SITE, Make

Change = Callable[[h5py.File], None]

COLUMNS = (
    f"{SITE}/step", f"{SITE}/micro", f"{SITE}/skipped", f"{SITE}/length", f"{SITE}/row", f"{SITE}/cell",
    f"{SITE}/recorded", f"{SITE}/checksum", f"{SITE}/dataset", f"{SITE}/gate", f"{SITE}/lag", "steps/step",
    "steps/value", "steps/scalar", "clips/kind", "clips/norm_before", "parameters/norm",
    "parameters/parameter", "parameters/measured",
)  # fmt: skip
#: In place of an array.
INSTEAD: dict[str, Callable[[h5py.Group, str, h5py.Dataset], Any]] = {
    "missing": lambda group, name, old: None,
    "a group": lambda group, name, old: group.create_group(name),
    "a scalar": lambda group, name, old: group.create_dataset(name, data=1.0),
    "without an axis": lambda group, name, old: group.create_dataset(name, shape=(0,) * old.ndim, dtype=old.dtype),
    "one longer": lambda group, name, old: group.create_dataset(
        name, shape=[n + 1 for n in old.shape], dtype=old.dtype
    ),
    "of another type": lambda group, name, old: group.create_dataset(
        name, shape=old.shape, dtype="S8" if old.dtype.kind in "if" else "f8"
    ),
    "of long doubles": lambda group, name, old: group.create_dataset(name, shape=old.shape, dtype=np.longdouble),
    "of truth values": lambda group, name, old: group.create_dataset(name, shape=old.shape, dtype=bool),
}
#: Values that no recorder writes.
VALUES: dict[str, tuple[str, Any]] = {
    "a length of -5": (f"{SITE}/length", -5),
    "a length of 2^31-1": (f"{SITE}/length", 2**31 - 1),
    "a length beyond its axis": (f"{SITE}/length", 6),
    "a row of -7": (f"{SITE}/row", -7),
    "a step of -1": (f"{SITE}/step", -1),
    "a step of 2^62": (f"{SITE}/step", 2**62),
    "a role of 100": (f"{SITE}/role", 100),
    "a rank of -1": (f"{SITE}/rank", -1),
    "skipped 7": (f"{SITE}/skipped", 7),
    "no smallest normal number": (f"{SITE}/smallest_normal", np.nan),
    "an infinite smallest normal number": (f"{SITE}/smallest_normal", np.inf),
    "after of 2^60": (f"{SITE}/after", 2**60),
    "after of 2^40": (f"{SITE}/after", 2**40),
    "negative norms": (f"{SITE}/cell", -1.0),
    "infinite norms": (f"{SITE}/cell", np.inf),
    "no norms": (f"{SITE}/cell", np.nan),
    "subnormal norms": (f"{SITE}/cell", 5e-324),
    "the largest norms": (f"{SITE}/cell", 1.7976931348623157e308),
    "infinite whole tensors": (f"{SITE}/hidden_tensor", np.inf),
    "negative steps": ("steps/step", -(2**62)),
    "steps beyond numbers": ("steps/step", 2**62),
    "times that are none": ("steps/time", np.nan),
    "times beyond a calendar": ("steps/time", 1e300),
    "scalars beyond numbers": ("steps/value", np.inf),
    "the largest scalars": ("steps/value", -1.7976931348623157e308),
    "a clipping of an unknown kind": ("clips/kind", b"\xff\xfe"),
    "a clipping kind of markup": ("clips/kind", b"<b>&"),
    "negative thresholds": ("clips/threshold", -1.0),
    "thresholds of 0": ("clips/threshold", 0.0),
    "thresholds that are none": ("clips/threshold", np.nan),
    "clips beyond numbers": ("clips/norm_before", np.inf),
    "negative clips": ("clips/norm_before", -1.0),
    "a share of 7": ("clips/clipped", 7.0),
    "a count of -1": ("clips/passes", -(2**31)),
    "negative parameter norms": ("parameters/norm", -1.0),
    "measured of -1": ("parameters/measured", -1),
    "all passes apart": ("parameters/role", 1),
    "two gates of one name": (f"{SITE}/gate", b"i"),
    "gates that are no text": (f"{SITE}/gate", b"\xff"),
    "two datasets of one name": (f"{SITE}/dataset", b"cell"),
    "unknown datasets": (f"{SITE}/dataset", b"nothing"),
    "two scalars of one name": ("steps/scalar", b"loss"),
    "scalars that are no text": ("steps/scalar", b"\xff\xfe"),
    "parameters without a name": ("parameters/parameter", b""),
}


def cases() -> Iterator[tuple[str, Make, str]]:
    for name in COLUMNS:
        for what, put in INSTEAD.items():
            yield f"{name} {what}", _changed(lambda file, name=name, put=put: _replace(file, name, put)), "sealed"
    for what, (name, value) in VALUES.items():
        yield what, _changed(lambda file, name=name, value=value: file[name].__setitem__(..., value)), "sealed"
    for change in (*LINKS, *LARGE):
        yield change.__name__.strip("_").replace("_", " "), _changed(change), "sealed"


def _changed(change: Change) -> Make:
    def make(run: Path, outside: Path) -> None:
        with h5py.File(run / SEGMENT, "r+", libver=("v108", "v110")) as file:
            change(file)
        resum_segment(run / SEGMENT)

    return make


def _replace(file: h5py.File, name: str, put: Callable[[h5py.Group, str, h5py.Dataset], Any]) -> None:
    home, _, own = name.rpartition("/")
    group, old = file[home], file[name]
    file.move(name, f"{name}_before")
    put(group, own, old)
    del file[f"{name}_before"]


# --- links and foreign things ----------------------------------------------------------------------------------------


def _a_link_to_another_file(file: h5py.File) -> None:
    file[f"{SITE}/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def _a_soft_link(file: h5py.File) -> None:
    file[f"{SITE}/again"] = h5py.SoftLink("/steps/time")


def _a_cycle(file: h5py.File) -> None:
    file[f"{SITE}/loop"] = file["sites"]


def _a_virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 2, 5), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", (3, 2, 5))
    del file[f"{SITE}/hidden"]
    file.create_virtual_dataset(f"{SITE}/hidden", layout)


def _external_storage(file: h5py.File) -> None:
    del file[f"{SITE}/hidden"]
    file.create_dataset(f"{SITE}/hidden", (3, 2, 5), "f8", external=[("/etc/passwd", 0, 240)])


def _a_filter_plug_in(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2, 2, 2))
    plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(file[SITE].id, b"direct", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((3, 2, 5)), plist)


def _references(file: h5py.File) -> None:
    file.create_dataset("steps/reference", (1,), h5py.ref_dtype)


def _variable_length_text(file: h5py.File) -> None:
    file.create_dataset("steps/text", (1,), h5py.string_dtype())


def _a_compound_type(file: h5py.File) -> None:
    file.create_dataset("steps/pairs", (1,), np.dtype([("a", "f8"), ("b", "i4")]))


def _a_named_type(file: h5py.File) -> None:
    file["steps/type"] = np.dtype("f8")


def _a_site_of_variable_length(file: h5py.File) -> None:
    del file[SITE].attrs["site"]
    file[SITE].attrs["site"] = "lstm/l0"


def _no_sites(file: h5py.File) -> None:
    del file["sites"]


def _no_steps(file: h5py.File) -> None:
    del file["steps"]


def _a_site_without_records(file: h5py.File) -> None:
    group = file.create_group("sites/more/l0")
    group.attrs["site"] = np.bytes_("more/l0")
    for name in file[SITE]:
        old = file[SITE][name]
        shape = (0, *old.shape[1:]) if name not in ("lag", "time", "gate", "sequence", "unit", "dataset") else old.shape
        group.create_dataset(name, data=old[: shape[0]] if old.shape[0] else old[...])


LINKS = (
    _a_link_to_another_file, _a_soft_link, _a_cycle, _a_virtual_dataset, _external_storage, _a_filter_plug_in,
    _references, _variable_length_text, _a_compound_type, _a_named_type, _a_site_of_variable_length, _no_sites,
    _no_steps, _a_site_without_records,
)  # fmt: skip


# --- much in little --------------------------------------------------------------------------------------------------


def _an_array_of_80_PB(file: h5py.File) -> None:
    file.create_dataset(f"{SITE}/direct", (10**6, 10**4, 10**3), "f8", chunks=(10, 10, 10))


def _never_written(file: h5py.File) -> None:
    file.create_dataset(f"{SITE}/direct", (3, 2, 5 * 10**6), "f8", chunks=(3, 2, 10**5))


def _many_arrays_never_written(file: h5py.File) -> None:
    for number in range(60):
        file.create_dataset(f"steps/array{number}", (6_000_000,), "f8", chunks=(10**5,))


def _two_gibibytes_of_zeros(file: h5py.File) -> None:
    for number in range(2):
        data = file.create_dataset(f"steps/zeros{number}", (1 << 27,), "f8", chunks=(1 << 17,), compression=9)
        block = np.zeros(1 << 22)
        for start in range(0, 1 << 27, 1 << 22):
            data[start : start + len(block)] = block


def _norms_of_zeros(file: h5py.File) -> None:
    """As they would be read: 800 MB of norms at a site, from some 800 kB."""
    shape = (3, 2, 16 * 10**6)
    _site_of(file, "zeros/l0", shape)


def _norms_of_zeros_that_may_be_read(file: h5py.File) -> None:
    _site_of(file, "zeros/l0", (3, 2, 10**6))


def _site_of(file: h5py.File, site: str, shape: tuple[int, int, int]) -> None:
    group = file.create_group(f"sites/{site}")
    group.attrs["site"] = np.bytes_(site)
    for name in file[SITE]:
        if name not in (
            "cell",
            "hidden",
            "gates",
            "weight",
            "hidden_tensor",
            "lag",
            "time",
            "gate",
            "dataset",
            "recorded",
            "checksum",
        ):
            file.copy(f"{SITE}/{name}", group, name)
    options = {"chunks": (1, 1, min(shape[2], 10**5)), "compression": 9}
    group.create_dataset("hidden", shape, "f8", **options)[...] = 0.0
    group.create_dataset("lag", (shape[2],), "i4", chunks=(10**5,), compression=9)[...] = 0
    group.create_dataset("dataset", data=np.array([b"hidden"]))
    for name, kind in (("recorded", "i1"), ("checksum", "u4")):
        group.create_dataset(name, data=np.ones((shape[0], 1), kind))
    for name in ("step", "length", "row", "lag", "dataset", "recorded", "checksum"):
        group[name].attrs.create("crc32", 0, dtype="u4")
    group["length"][...] = shape[2]


def _two_hundred_thousand_clips(file: h5py.File) -> None:
    _rows(file, "clips", 200_000)


def _ten_million_clips(file: h5py.File) -> None:
    _rows(file, "clips", 10_000_000)


def _two_hundred_thousand_steps(file: h5py.File) -> None:
    _rows(file, "steps", 200_000)


def _ten_million_steps(file: h5py.File) -> None:
    _rows(file, "steps", 10_000_000)


def _rows(file: h5py.File, table: str, count: int) -> None:
    """The first row of a table, so many times."""
    names = [name for name in file[table] if file[table][name].shape[:1] == file[table]["step"].shape]
    for name in names:
        old = file[table][name]
        if name == "scalar":
            continue
        kind, first = old.dtype, old[:1]
        del file[table][name]
        new = file[table].create_dataset(
            name, (count, *first.shape[1:]), kind, chunks=(10**5, *first.shape[1:]), compression=9, shuffle=True
        )
        block = np.repeat(first, 10**5, axis=0)
        for start in range(0, count, 10**5):
            new[start : start + 10**5] = block[: count - start]
        new.attrs.create("crc32", 0, dtype="u4")


def _ten_thousand_scalars(file: h5py.File) -> None:
    _scalars(file, 10_000)


def _three_thousand_scalars(file: h5py.File) -> None:
    _scalars(file, 3000)


def _scalars(file: h5py.File, count: int) -> None:
    del file["steps/scalar"], file["steps/value"]
    file["steps"].create_dataset("scalar", data=np.array([f"s{k}".encode() for k in range(count)]))
    file["steps"].create_dataset("value", data=np.zeros((3, count)))
    for name in ("scalar", "value"):
        file["steps"][name].attrs.create("crc32", 0, dtype="u4")


def _three_thousand_sites(file: h5py.File) -> None:
    _sites(file, 3000)


def _one_thousand_sites(file: h5py.File) -> None:
    _sites(file, 1000)


def _sites(file: h5py.File, count: int) -> None:
    for number in range(count):
        file.copy(SITE, file["sites"], f"m{number}")
        file[f"sites/m{number}"].attrs["site"] = np.bytes_(f"m{number}")


def _a_hundred_thousand_groups(file: h5py.File) -> None:
    for number in range(100_000):
        h5py.h5g.create(file.id, f"g{number}".encode())


def _a_hundred_thousand_attributes(file: h5py.File) -> None:
    group = file.create_group("many", track_order=False)
    for number in range(100_000):
        group.attrs.create(f"a{number}", number, dtype="i4")


def _nested_deep(file: h5py.File) -> None:
    file.create_group("sites/" + "/".join("abcdefghijkl"))


def _tiny_chunks(file: h5py.File) -> None:
    file.create_dataset("steps/many", (2**21,), "i1", chunks=(1,))


def _a_huge_chunk(file: h5py.File) -> None:
    file.create_dataset("steps/chunk", (10,), "f8", maxshape=(None,), chunks=(2**26,))


def _no_extent(file: h5py.File) -> None:
    file.create_dataset("steps/nothing", data=h5py.Empty("f8"))


def _a_name_of_60_kB(file: h5py.File) -> None:
    file.create_group("sites/" + "x" * 60_000)


LARGE = (
    _an_array_of_80_PB, _never_written, _many_arrays_never_written, _two_gibibytes_of_zeros, _norms_of_zeros,
    _norms_of_zeros_that_may_be_read, _two_hundred_thousand_clips, _ten_million_clips, _two_hundred_thousand_steps,
    _ten_million_steps, _ten_thousand_scalars, _three_thousand_scalars, _three_thousand_sites, _one_thousand_sites,
    _a_hundred_thousand_groups, _a_hundred_thousand_attributes, _nested_deep, _tiny_chunks, _a_huge_chunk, _no_extent,
    _a_name_of_60_kB,
)  # fmt: skip
