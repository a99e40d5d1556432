/* SPDX-License-Identifier: MIT */
/*
 * Objects made by users, whatever their type, and what is made with them.
 */
#ifndef MERINO_MONITOR_OBJECTS_H
#define MERINO_MONITOR_OBJECTS_H

#include "qapi/qapi-types.h"

bool object_exists(const char *id);

/* nbd_server_start(), which looks first whether the objects that the options name are of the
 * right types. */
bool monitor_nbd_server_start(const NbdServerOptions *options, GError **error);

#endif
