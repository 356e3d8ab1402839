# shellcheck shell=dash
# Discard and write zeroes, with and without leave to unmap. The image is full of random data; the
# neighbours of every range must stay as they are, and the host looks at how much the file shrank.
# In MiB: 0-4 kept, 4-12 discarded, 12-16 kept, 16-20 zeroed, 20-24 kept, 24-28 punched, 28-32 kept.
zeroes=$(head -c 4m /dev/zero | md5sum | cut -d' ' -f1)
kept() { for mib in 0 12 20 28; do sum $mib 4; done; }

before=$(kept)
must "blkdiscard" blkdiscard -o 4m -l 8m /dev/vda
must "blkdiscard -z" blkdiscard -z -o 16m -l 4m /dev/vda
must "fallocate --punch-hole" fallocate -p -o 24m -l 4m /dev/vda
same "neighbours" "$(kept)" "$before"
same "zeroed" "$(sum 16 4)" "$zeroes"
same "punched" "$(sum 24 4)" "$zeroes"

# Ranges of single sectors, off any 4 KiB boundary.
head_of_disk() { dd if=/dev/vda of="$1" bs=512 count=16 iflag=direct 2>/dev/null; }
sectors_to() { dd if="$1" of=/tmp/expected bs=512 skip="$2" seek="$2" count="$3" conv=notrunc 2>/dev/null; }
head_of_disk /tmp/expected
must "zero one sector" blkdiscard -z -o 1536 -l 512 /dev/vda
must "discard two sectors" blkdiscard -o 4608 -l 1024 /dev/vda
head_of_disk /tmp/now
sectors_to /dev/zero 3 1
sectors_to /tmp/now 9 2 # what a discarded sector reads as is not promised
must "sectors beside a small range" cmp /tmp/expected /tmp/now

random 1 /tmp/new
put /tmp/new 6
same "write into a discarded range" "$(sum 6 1)" "$(md5sum </tmp/new | cut -d' ' -f1)"
host_agrees 0 32
