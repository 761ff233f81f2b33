#!/bin/busybox sh
# The first and only program of the smallest disk that a test boots: finds its seed, sets up the network as cloud-init
# would, serves its user data, and powers off when the button is pressed.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover \
    virtio_net virtio_blk cdrom isofs button evdev; do
    insmod /modules/$module.ko
done
mount -t iso9660 -o ro /dev/vdb /mnt
cat /mnt/meta-data
address=$(sed -n 's/^ *"\([0-9.]*\/32\)"$/\1/p' /mnt/network-config)
gateway=$(sed -n 's/.*"via": "\(.*\)".*/\1/p' /mnt/network-config)
ip link set lo up
ip link set eth0 up
ip addr add "$address" dev eth0
ip route add "$gateway" dev eth0
ip route add default via "$gateway"
cp /mnt/user-data /www/index.html
for device in /dev/input/event*; do
    (dd if=$device of=/dev/null bs=24 count=1 2>/dev/null; echo "the power button was pressed"; poweroff -f) &
done
httpd -p 8080 -h /www
echo "up with $address"
while true; do setsid cttyhack sh; done
