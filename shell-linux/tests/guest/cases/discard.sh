# Discard and write zeroes, with and without leave to unmap. The image is full of random data; the
# neighbours of every range must stay as they are, and the host looks at how much the file shrank.
# Layout in MiB: 0-8 kept, 8-24 discarded, 24-32 kept, 32-40 zeroed, 40-48 kept, 48-56 punched.
zero() { head -c "$(($1 << 20))" /dev/zero | md5sum | cut -d' ' -f1; }
kept() { for at in 0 24 40 56; do sum $at 8; done; }

before=$(kept)
must "blkdiscard" blkdiscard -o 8m -l 16m $dev
must "blkdiscard -z" blkdiscard -z -o 32m -l 8m $dev
must "fallocate --punch-hole" fallocate -p -o 48m -l 8m $dev
same "neighbours" "$(kept)" "$before"
same "zeroed" "$(sum 32 8)" "$(zero 8)"
same "punched" "$(sum 48 8)" "$(zero 8)"

# Ranges of single sectors, off any 4 KiB boundary: sector 3 of the first MiB and 9 to 10.
dd if=$dev of=/tmp/head bs=512 count=16 iflag=direct 2>/dev/null
must "zero one sector" blkdiscard -z -o 1536 -l 512 $dev
must "discard two sectors" blkdiscard -o 4608 -l 1024 $dev
dd if=/dev/zero of=/tmp/head bs=512 seek=3 count=1 conv=notrunc 2>/dev/null
dd if=$dev of=/tmp/now bs=512 count=16 iflag=direct 2>/dev/null
# What a discarded sector reads as is not promised: take it as it is.
dd if=/tmp/now of=/tmp/head bs=512 skip=9 seek=9 count=2 conv=notrunc 2>/dev/null
must "sectors beside a small range" cmp /tmp/head /tmp/now

random 1 /tmp/new
put /tmp/new 12
same "write into a discarded range" "$(sum 12 1)" "$(md5sum </tmp/new | cut -d' ' -f1)"
host_agrees 0 64
