#!/bin/bash
# Packs static programs into an image archive without a daemon; the first one is the entrypoint.
#
#   image/pack.sh ARCH REFERENCE OUTPUT.tar PROGRAM...
#
# The archive is an OCI image layout with the one file more (manifest.json) that `docker load` wants, so
# `ctr -n k8s.io images import` (containerd 1.6 and later), `podman load`, `skopeo` and `docker load` all take it.
# The same programs give the same bytes: names sorted, owner 0:0, every time 1970.
set -euo pipefail

arch=$1 reference=$2 output=$3
shift 3
case $reference in
*:*) tag=${reference##*:} ;;
*) echo "error: $reference has no tag" >&2; exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/etc" "$work/layout/blobs/sha256"

pack() { # FOLDER ARCHIVE
    tar --create --file "$2" --directory "$1" --format=ustar --sort=name --mtime=@0 \
        --owner=0 --group=0 --numeric-owner --mode='u+rw,go-w' .
}
# Stores a file as a blob; prints its digest without the algorithm.
blob() {
    local digest
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    cp "$1" "$work/layout/blobs/sha256/$digest"
    echo "$digest"
}
size() { stat -c %s "$work/layout/blobs/sha256/$1"; }

install -m 0755 "$@" "$work/root/"
# For people who look into the container, and for runtimes that look a user's name up.
printf 'root:x:0:0:root:/:/sbin/nologin\nyurt:x:65532:65532:yurt:/:/sbin/nologin\n' >"$work/root/etc/passwd"
printf 'root:x:0:\nyurt:x:65532:\n' >"$work/root/etc/group"
chmod 0644 "$work/root/etc/passwd" "$work/root/etc/group"
chmod 0755 "$work/root" "$work/root/etc"

pack "$work/root" "$work/layer.tar"
layer=$(blob "$work/layer.tar")

cat >"$work/config.json" <<JSON
{"created":"1970-01-01T00:00:00Z","architecture":"$arch","os":"linux","config":{"Entrypoint":["/$(basename "$1")"],"Env":["PATH=/"],"Labels":{"org.opencontainers.image.licenses":"Apache-2.0","org.opencontainers.image.source":"https://github.com/kubectl-yurt/kubectl-yurt"}},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"image/pack.sh"}]}
JSON
config=$(blob "$work/config.json")

cat >"$work/manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size "$config")},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:$layer","size":$(size "$layer")}]}
JSON
manifest=$(blob "$work/manifest")

cat >"$work/layout/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size "$manifest"),"platform":{"architecture":"$arch","os":"linux"},"annotations":{"io.containerd.image.name":"$reference","org.opencontainers.image.ref.name":"$tag"}}]}
JSON
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
cat >"$work/layout/manifest.json" <<JSON
[{"Config":"blobs/sha256/$config","RepoTags":["$reference"],"Layers":["blobs/sha256/$layer"]}]
JSON
chmod -R u=rwX,go=rX "$work/layout"

mkdir -p "$(dirname "$output")"
pack "$work/layout" "$output.part"
mv "$output.part" "$output"
