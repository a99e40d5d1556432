/* SPDX-License-Identifier: MIT */
/*
 * What the text of a --chardev option says, checked.
 */
#ifndef MERINO_MONITOR_CHARDEV_OPTIONS_H
#define MERINO_MONITOR_CHARDEV_OPTIONS_H

#include "qapi/qapi-types.h"

typedef enum ChardevKind {
    CHARDEV_SOCKET,
    CHARDEV_STDIO,
} ChardevKind;

typedef struct ChardevOptions {
    char *id;
    ChardevKind kind;
    SocketAddress *address; /* of a socket */
    bool server;
    bool wait; /* for the first client */
    bool nodelay;
} ChardevOptions;

extern const char *const chardev_kind_names[]; /* NULL at the end */

ChardevOptions *chardev_options_parse(const char *text, GError **error);
void chardev_options_free(ChardevOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ChardevOptions, chardev_options_free)

#endif
