/* SPDX-License-Identifier: MIT */
/*
 * Sockets that listen, from addresses as QMP has them.
 *
 * The file of a unix socket may be left over from a program that was killed, so a socket in its
 * place is replaced; a file of another kind is not. At the end the file is removed, unless
 * somebody has replaced it since.
 */
#ifndef MERINO_NET_LISTEN_H
#define MERINO_NET_LISTEN_H

#include "qapi/qapi-types.h"

#include <sys/stat.h>

typedef struct NetListener {
    GArray *fds; /* int: listening, non-blocking, at least one: a name may stand for several */
    char *path;  /* of the socket's file, if there is one; or NULL */
    dev_t device;
    ino_t inode;
} NetListener;

/* The permissions of a socket's file are what the umask leaves. */
#define NET_MODE_FROM_UMASK (-1)

/* `mode` is the permissions of a unix socket's file, which never has more than these, or
 * NET_MODE_FROM_UMASK. NULL and an error in QEMU's words. */
NetListener *net_listen(const SocketAddress *address, int mode, GError **error);

/* Close the descriptors and remove the file; NULL is ignored. */
void net_listener_free(NetListener *listener);

#endif
