# shellcheck shell=dash
# Requests of odd shapes: many lengths in units of one sector, from buffers that start off a page,
# a single sector at a time, and large blocks that need several requests.
verify odd --size=16m --rw=randwrite --bsrange=512-64k --blockalign=512 --iomem_align=512 --iodepth=16
verify sector --offset=16m --size=1m --rw=randwrite --bs=512 --iomem_align=512 --iodepth=64
verify large --offset=20m --size=24m --rw=randwrite --bsrange=512-4m --blockalign=512 --iodepth=4
verify huge --offset=44m --size=16m --rw=write --bs=4m --iomem=mmap --iodepth=2
host_agrees 0 64
