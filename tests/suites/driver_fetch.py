"""Gets drivers' suites from package registries, by their ordinary clients.

Invariants: nothing is fetched that is already there; a command that fails is a `Failure` that names it and its log.
Absent on purpose: repositories, mirrors, and anything committed here.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys

from rig import ROOT, Failure

STAMP = ".fetched"
DEBIAN_RELEASES = ("bookworm", "trixie", "sid")
"""Newest first would do; mirrors drop some sources, so several are asked."""


def run(argv, *, cwd=None, env=None, stdout=None, timeout=900, check=True):
    """Runs a command; its exit code, -1 when it was ended for taking too long."""
    kept = stdout or subprocess.PIPE
    child = subprocess.Popen(
        argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=kept, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        said, _ = child.communicate(timeout=timeout)
        code = child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
        code = -1
    if check and code != 0:
        tail = (said or b"").decode("utf-8", "replace")[-2000:]
        raise Failure(f"{' '.join(argv)}: exit code {code}\n{tail}")
    return code


def fresh(place, wanted, done=False):
    """Whether a place must be made for what is wanted; empties it then. `done` records that it was."""
    stamp = os.path.join(place, STAMP)
    if done:
        with open(stamp, "w", encoding="utf-8") as file:
            file.write(wanted)
        return False
    if os.path.exists(stamp) and open(stamp, encoding="utf-8").read() == wanted:
        return False
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(place)
    print(f"suites: fetching {wanted}", flush=True)
    return True


def debian_packages(*names):
    """Installs the packages that are missing."""
    missing = [name for name in names if run(["dpkg", "-s", name], check=False) != 0]
    if not missing:
        return
    print(f"suites: installing the packages: {' '.join(missing)}", flush=True)
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    # --no-upgrade: servers of this machine may be running from what is installed.
    run([*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", "--no-upgrade", *missing])


def debian_source(name, target):
    """Unpacks the upstream source that Debian keeps of a package: the newest that is to be had."""
    place = os.path.join(os.path.dirname(target), "fetch")
    for part in ("lists/partial", "cache/archives/partial", "got"):
        os.makedirs(os.path.join(place, part), exist_ok=True)
    with open(os.path.join(place, "sources.list"), "w", encoding="ascii") as file:
        file.writelines(f"deb-src {mirror()} {release} main\n" for release in DEBIAN_RELEASES)
    options = [f"Dir::Etc::SourceList={place}/sources.list", "Dir::Etc::SourceParts=/dev/null"]
    options += [f"Dir::State::Lists={place}/lists", f"Dir::Cache={place}/cache", "APT::Sandbox::User=root"]
    options = [word for option in options for word in ("-o", option)]
    run(["apt-get", *options, "-qq", "update"])
    said = subprocess.run(["apt-cache", *options, "showsrc", name], check=True, stdout=subprocess.PIPE, text=True).stdout
    versions = {line.split(": ", 1)[1] for line in said.splitlines() if line.startswith("Version: ")}
    for version in sorted(versions, reverse=True):
        # Fails when any of several files is missing; the upstream one is all we need.
        run(["apt-get", *options, "-qq", "source", "--download-only", f"{name}={version}"], cwd=f"{place}/got", check=False)
        upstream = version.split(":")[-1].rsplit("-", 1)[0]
        for tarball in glob.glob(f"{place}/got/{name}_{glob.escape(upstream)}.orig.tar.*z*"):
            if not tarball.endswith(".asc"):
                os.makedirs(target)
                run(["tar", "-C", target, "--strip-components=1", "-xf", tarball])
                print(f"suites: {name} {upstream}", flush=True)
                return
    raise Failure(f"no source of {name} is to be had from Debian's archive ({', '.join(sorted(versions)) or 'unknown there'})")


def mirror():
    """The archive that this machine uses."""
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/debian*")]:
        if os.path.exists(path):
            for word in open(path, encoding="utf-8").read().split():
                if word.startswith("http") and word.rstrip("/").endswith("/debian") and "snapshot" not in word:
                    return word.rstrip("/")
    raise Failure("no Debian archive in /etc/apt")


def venv(path, *packages):
    """A virtual environment with these packages."""
    run([sys.executable, "-m", "venv", "--clear", path])
    run([os.path.join(path, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", *packages])


def sdist(environment, requirement, target):
    """Unpacks a source distribution."""
    got = target + ".got"
    pip = os.path.join(environment, "bin", "pip")
    run([pip, "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:", "-d", got, requirement])
    (tarball,) = glob.glob(os.path.join(got, "*.tar.gz"))
    os.makedirs(target)
    run(["tar", "-C", target, "--strip-components=1", "-xzf", tarball])


def cargo_source(name):
    """Where cargo keeps the source of a crate that this project depends on."""
    argv = ["cargo", "metadata", "--format-version=1", "--locked"]
    said = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for package in json.loads(said)["packages"]:
        if package["name"] == name:
            return os.path.dirname(package["manifest_path"])
    raise Failure(f"{name} is not a dependency")
