#!/bin/bash
# The node's init process. It runs the registry, containerd, the kubelet and the port forwards in namespaces of its own;
# when it dies, the kernel ends all of them. node.py passes the state's folder as the argument, and these variables:
# NODE_IP; PRIVATE, the folders to mount over; CGROUP; TMPDIR; PORT_FORWARDS, the descriptors of inherited listeners.
set -u
cd "$1" || exit 1
for folder in $PRIVATE; do
  mount --bind "root$folder" "$folder"
done
mount --make-rshared /var/lib/kubelet
# The kubelet would change these settings for the whole host. Files with the values that it wants are mounted over them.
while read -r name value; do
  mkdir -p "root/proc/${name%/*}"
  echo "$value" > "root/proc/$name"
  mount --bind "root/proc/$name" "/proc/sys/$name"
done < config/kernel-settings
resolver=$(readlink -f /etc/resolv.conf)
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock "$TMPDIR" # runc leaves a file in TMPDIR where it is killed
case $resolver in
  /run/*) mkdir -p "${resolver%/*}" && cp config/resolv.conf "$resolver" ;;
  *) mount --bind config/resolv.conf /etc/resolv.conf ;;
esac

# Control groups have one tree in version 2, and one for each controller in version 1.
trees=(/sys/fs/cgroup/*)
[ -e /sys/fs/cgroup/cgroup.procs ] && trees=(/sys/fs/cgroup)
for tree in "${trees[@]}"; do
  [ -e "$tree/cgroup.procs" ] && mkdir -p "$tree/$CGROUP"
done

# A bridge has the node's address, because not every kernel has the dummy device.
ip link set lo up
ip link add node0 type bridge
ip addr add "$NODE_IP/24" dev node0
ip link set node0 up
ip route add default via "$NODE_IP" dev node0
sysctl -qw net.ipv4.ip_forward=1

haproxy -db -f config/haproxy.cfg > log/haproxy.log 2>&1 &
for descriptor in $PORT_FORWARDS; do
  eval "exec $descriptor>&-" # only haproxy may hold the listeners
done
docker-registry serve config/registry.yml > log/registry.log 2>&1 &
containerd --config config/containerd.toml > log/containerd.log 2>&1 &

# The kubelet would end if it started before kubeadm has written these files.
while [ ! -f /var/lib/kubelet/kubeadm-flags.env ] || [ ! -f /etc/kubernetes/kubelet.conf ]; do sleep 0.2; done
# shellcheck source=/dev/null
. /var/lib/kubelet/kubeadm-flags.env
# shellcheck disable=SC2086  # several arguments
kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
  --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS > log/kubelet.log 2>&1 &
wait
