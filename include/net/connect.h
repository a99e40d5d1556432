/* SPDX-License-Identifier: MIT */
/*
 * Sockets that connect, from addresses as the schema has them.
 */
#ifndef MERINO_NET_CONNECT_H
#define MERINO_NET_CONNECT_H

#include "qapi/qapi-types.h"

/* A connected descriptor, or -1 and an error in QEMU's words. Blocks until it is known whether
 * somebody answers. An address of type `fd` is a descriptor that is connected already. */
int net_connect(const SocketAddress *address, GError **error);

#endif
