/* SPDX-License-Identifier: MIT */
/*
 * All that a client sends to a server that asks for TLS: options in the clear, and what comes in
 * place of a handshake. No input knows the key, so none gets beyond it.
 */
#include "disks.h"
#include "fuzz.h"
#include "nbd-client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    disks_init_tls();
    nbd_make_exports();
    nbd_exchange(data, size, true);
    disks_clear();
    return 0;
}
