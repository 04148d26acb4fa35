#!/bin/busybox sh
# The first process of a test VM: makes the machine that a test expects, runs /command, hands back its exit status
# and what it left in /out, and switches the VM off. Lines that begin with @@ are for vm.rs.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev 2>/dev/null
# Otherwise the terminal turns each newline into two characters.
$B stty -opost </dev/console 2>/dev/null
# Names that are there already, such as the host's ip, stay what they are.
$B --install -s /bin 2>/dev/null
export PATH=/w:/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=dumb LANG=C
mount -t tmpfs tmp /tmp
# ip netns binds namespaces below /run, which the root of an initramfs doesn't allow.
mount -t tmpfs run /run
mkdir -p /run/netns /dev/pts /dev/shm
mount -t devpts devpts /dev/pts 2>/dev/null
mount -t tmpfs shm /dev/shm 2>/dev/null
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t bpf bpf /sys/fs/bpf 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
for module in $(cat /modules/order); do
	insmod "/modules/$module.ko" || echo "insmod $module failed"
done
ip link set lo up
cd /w
echo
echo "@@BEGIN"
/bin/sh /command </dev/null 2>&1
status=$?
echo
echo "@@STATUS $status"
if [ -n "$(ls -A /out)" ] && [ -c /dev/ttyS1 ]; then
	stty raw -echo </dev/ttyS1
	tar -C /out -c . >/dev/ttyS1
fi
if [ -e /want-kernel-log ]; then
	echo "@@KERNEL"
	dmesg
fi
echo "@@END"
poweroff -f
