/* SPDX-License-Identifier: MIT */
/*
 * All that an NBD client sends, from its flags on.
 */
#include "disks.h"
#include "fuzz.h"
#include "nbd-client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    nbd_make_exports();
    nbd_exchange(data, size, false);
    disks_clear();
    return 0;
}
