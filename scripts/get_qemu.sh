#!/usr/bin/env bash
# Unpack Debian 13's QEMU and mmdebstrap into a folder, for tests of emulated processors: scripts/get_qemu.sh FOLDER
# Nothing is installed; needs apt, dpkg and Debian's keyring, and no root. The programs lie in FOLDER/usr/bin afterwards.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
apt=$folder/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
: > "$apt/status"
cat > "$apt/trixie.sources" <<SOURCES
Types: deb
URIs: ${MIRROR:-http://deb.debian.org/debian}
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
settings=(-qq -o "Dir::Etc::sourcelist=$apt/trixie.sources" -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::State=$apt"
    -o "Dir::State::status=$apt/status" -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root
    -o Acquire::Retries=1 -o Acquire::http::Timeout=10)
apt-get "${settings[@]}" update
(cd "$apt" && apt-get "${settings[@]}" download qemu-user mmdebstrap)
for package in qemu-user mmdebstrap; do
    dpkg-deb --fsys-tarfile "$apt/$package"_*.deb |
        tar -x -C "$folder" --wildcards './usr/bin/qemu-x86_64' './usr/bin/qemu-aarch64' './usr/bin/mmdebstrap' 2> /dev/null || true
done
rm -rf "$apt"
"$folder/usr/bin/qemu-x86_64" --version | head -n 1
