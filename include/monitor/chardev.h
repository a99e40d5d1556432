/* SPDX-License-Identifier: MIT */
/*
 * Character devices: where a stream of bytes to somebody outside comes from, by id, as --chardev
 * describes it.
 *
 *   socket,id=ID,path=PATH            a unix socket; connects to it
 *   socket,id=ID,host=HOST,port=PORT  a TCP socket
 *   socket,id=ID,fd=N                 a socket that the program was started with, connected
 *       ,server=on                    listens instead (fd: is listening already)
 *       ,wait=off                     a server that does not wait for its first client
 *   stdio,id=ID                       standard input and output
 *
 * A server has one connection at a time; who comes meanwhile waits in the socket's queue until that
 * one is over. A client, stdio and a connected descriptor have one connection for good.
 *
 * Each device has one user. Main thread, GLib's main context.
 */
#ifndef MERINO_MONITOR_CHARDEV_H
#define MERINO_MONITOR_CHARDEV_H

#include <glib.h>
#include <stdbool.h>

typedef struct Chardev Chardev;

/* There is a connection; both descriptors, which may be the same, stay the device's. */
typedef void ChardevConnected(void *opaque, int in_fd, int out_fd);

/* Make a device from the text of a --chardev option: a client connects, a server listens and,
 * unless wait=off, waits for its first client. */
bool chardev_add(const char *text, GError **error);

/* NULL when there is none. */
Chardev *chardev_find(const char *id);

/* Use the device. `connected` is called from the main loop as soon as there is a connection, and
 * again after each chardev_disconnect() of a server. Refused when in use. */
bool chardev_attach(Chardev *chardev, ChardevConnected *connected, void *opaque, GError **error);

/* The user has done with the present connection: close it. A server takes the next one. */
void chardev_disconnect(Chardev *chardev);

/* Close all devices, remove the files of their sockets, free everything. Nobody uses them any more.
 */
void chardev_close_all(void);

/* Whether standard input and output belong to a device. */
bool chardev_uses_stdio(void);

/* The names of the kinds of devices, NULL at the end. */
const char *const *chardev_kinds(void);

#endif
