/* SPDX-License-Identifier: MIT */
/*
 * Sockets that listen, from addresses as QMP has them.
 */
#ifndef MERINO_NET_LISTEN_H
#define MERINO_NET_LISTEN_H

#include "qapi/qapi-types.h"

/* Listening, non-blocking descriptors, at least one: a host name may stand for several addresses.
 * NULL and an error in QEMU's words. */
GArray *net_listen(const SocketAddress *address, GError **error);

/* Close the descriptors and remove the socket's file, if it is one of ours. */
void net_listen_close(GArray *fds, const SocketAddress *address);

#endif
