"""What the files of prebuilds/ need of a system: prints it, and fails above the limits. Run by check-prebuilds.mjs.

    check-prebuilds.py GLIBC GLIBCXX CXXABI FUNCTIONS SYSTEM_FUNCTIONS

GLIBC, GLIBCXX, CXXABI: the newest versions of symbols that a file may need on Linux. FUNCTIONS: the Node-API functions that it
may call, with commas. SYSTEM_FUNCTIONS: a file that names every function of macOS.
"""

import pathlib
import re
import struct
import sys

import lief

lief.logging.disable()

# Their last bits differ from one C library to the next; float32 functions are the package's own (native/core/logarithm.h).
OF_LIBRARY = r"(log|log1p|log2|log10|exp|exp2|expm1|pow|sin|cos|sincos|tan|asin|acos|atan|atan2|sinh|cosh|tanh|erf|erfc)f"
PLUGIN_LIMIT = 40e6
PLUGIN_GLIBC = "2.34"  # of Ubuntu 22.04 and Debian 12: GCC compiles it against the glibc of its machine, Zig the others
# Everything else must be linked in: a sanitizer, cuBLAS or libnode here would not load elsewhere.
LIBRARIES = {
    "linux": r"(libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt|ld-linux[\w-]*)\.so(\.\d+)?",
    "win32": r"KERNEL32\.dll|api-ms-win-crt-[\w-]+\.dll",
    "darwin": r"/usr/lib/libSystem\.B\.dylib",
}
# All that an addon may show to others: on macOS the loader merges exported weak symbols of all images, such as operator new.
ENTRY_POINTS = {"napi_register_module_v1", "node_api_module_get_api_version_v1"}
OF_LINKER = {"_mh_dylib_header", "__dso_handle"}
OLDEST_MACOS = [11, 0, 0]  # of every Mac with an ARM processor


FATBIN = bytes.fromhex("50ed55ba")  # then, little-endian: version (2 bytes), size of this header (2), size of the rest (8)


def code_of(data):
    """The code for GPUs in a plugin: one set for each of its fatbins, such as {"sm_90", "compute_120"} (PTX)."""
    kinds = {1: "compute", 2: "sm"}
    start = data.find(FATBIN)
    while start >= 0:
        _, header, rest = struct.unpack_from("<HHQ", data, start + 4)
        at, end = start + header, start + header + rest
        found = set()
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            found.add(f"{kinds[kind]}_{architecture}")
            at += header + size
        yield found
        start = data.find(FATBIN, end)


def wanted_code(name):
    """That of the architectures in native/cuda/CMakeLists.txt: first those of the plugin for CUDA 12."""
    text = pathlib.Path("native/cuda/CMakeLists.txt").read_text()
    lists = [found.split() for found in re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (\d+-real .*?)\)", text)]
    wanted = lists[0] if "12" in name else lists[1]
    ptx = {f"compute_{entry}" for entry in wanted if not entry.endswith("-real")}
    return ptx | {f"sm_{entry.removesuffix('-real')}" for entry in wanted}


def version(text):
    return [int(part) for part in text.split(".")]


def newest_versions(binary):
    """The newest version of each family that the symbols name, such as {'GLIBC': '2.28'}."""
    newest = {}
    for requirement in binary.symbols_version_requirement:
        for entry in requirement.get_auxiliary_symbols():
            family, _, number = entry.name.partition("_")
            if re.fullmatch(r"[\d.]+", number) and version(number) > version(newest.get(family, "0")):
                newest[family] = number
    return newest


def facts(binary, platform, path):
    """(libraries, functions that it takes from outside, whether symbols or debugging data are left)."""
    if platform == "linux":
        left = len(list(binary.symtab_symbols)) > 0 or any("debug" in section.name for section in binary.sections)
        return binary.libraries, [symbol.name for symbol in binary.dynamic_symbols if symbol.shndx == 0], left
    if platform == "win32":
        named = set(re.findall(r"\b(?:napi|node_api)_\w+", path.read_bytes().decode("latin1")))  # it looks them up
        taken = sorted(named - {entry.name for entry in binary.get_export().entries})
        taken += [entry.name for library in binary.imports for entry in library.entries]
        return [library.name for library in binary.imports], taken, len(list(binary.symbols)) > 0
    own = binary[lief.MachO.LoadCommand.TYPE.ID_DYLIB].name
    taken = [symbol.name.removeprefix("_") for symbol in binary.imported_symbols]
    return [library.name for library in binary.libraries if library.name != own], taken, False


def faults(path, platform, limits, functions, system_functions):
    binary = lief.parse(str(path))
    if isinstance(binary, lief.MachO.FatBinary):
        binary = binary.at(0)
    libraries, taken, symbols_left = facts(binary, platform, path)
    versions = newest_versions(binary) if platform == "linux" else {}
    size = path.stat().st_size
    needs = [f"{family} {number}" for family, number in versions.items()] + sorted(libraries)
    print(f"{path.parent.name}/{path.name}: {size / 1e6:.2f} MB, needs {', '.join(needs)}")

    if path.suffix == ".so":
        limits = {**limits, "GLIBC": PLUGIN_GLIBC}
    for family, number in versions.items():
        if family not in limits or version(number) > version(limits[family]):
            yield f"needs {family} {number}, the limit is {limits.get(family)}"
    for library in libraries:
        if not re.fullmatch(LIBRARIES[platform], library):
            yield f"needs {library}"
    if symbols_left:
        yield "is not stripped"
    if path.suffix == ".node":
        for name in taken:
            if re.fullmatch(OF_LIBRARY, name):
                yield f"calls {name} of the C library"
        called = [name for name in taken if name.startswith("napi_") or name.startswith("node_api_")]
        if not called:
            yield "calls no Node-API function"
        for name in called:
            if name not in functions:
                yield f"calls {name}, which is newer than the Node-API of package.json"
    else:
        codes = list(code_of(path.read_bytes()))
        wanted = wanted_code(path.name)
        print(f"  {len(codes)} times code for {', '.join(sorted(set().union(*codes)))}")
        if not codes or any(code != wanted for code in codes):
            yield f"has other code for GPUs than {', '.join(sorted(wanted))}"
        if size > PLUGIN_LIMIT:
            yield f"has {size} bytes, the limit is {PLUGIN_LIMIT:.0f}"
    if platform == "darwin":
        for name in taken:  # the linker was told to leave them to the loader
            if name not in functions and f"_{name}" not in system_functions and name != "dyld_stub_binder":
                yield f"needs {name}, which is not in macOS"
        exported = {symbol.name.removeprefix("_") for symbol in binary.exported_symbols} - OF_LINKER
        for name in sorted(exported ^ ENTRY_POINTS):
            yield f"exports {name}" if name in exported else f"does not export {name}"
        for name in sorted({bound.symbol.name for bound in binary.bindings if bound.weak_import and bound.has_symbol}):
            if "st_moe" not in name:
                yield f"binds {name} weakly, so that of another addon may take its place"
        if "dladdr" not in taken:
            yield "does not hold a reference to itself (keep_loaded of native/cpu/pool.cc)"
        if binary.build_version.minos > OLDEST_MACOS:
            yield f"needs macOS {binary.build_version.minos}, the limit is {OLDEST_MACOS}"
        if "arm64" in path.parent.name and not binary.has_code_signature:  # which macOS demands there
            yield "has no signature"


def main():
    glibc, glibcxx, cxxabi, functions, system = sys.argv[1:]
    limits = {"GLIBC": glibc, "GLIBCXX": glibcxx, "CXXABI": cxxabi, "GCC": "7.0"}
    system_functions = set(re.findall(r"[\w$]+", pathlib.Path(system).read_text()))
    files = sorted(pathlib.Path("prebuilds").glob("*/*"))
    if not files:
        sys.exit("check-prebuilds: there are none: npm run prebuilds makes them")
    failed = False
    for path in files:
        platform = path.parent.name.split("-")[0]
        for fault in faults(path, platform, limits, set(functions.split(",")), system_functions):
            failed = True
            print(f"{path.parent.name}/{path.name} {fault}", file=sys.stderr)
    sys.exit(failed)


main()
