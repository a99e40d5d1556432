/* SPDX-License-Identifier: MIT */
/*
 * What the program tells about itself on standard output.
 */
#ifndef MERINO_STORAGE_DAEMON_HELP_H
#define MERINO_STORAGE_DAEMON_HELP_H

#include <glib.h>
#include <stdbool.h>

void help_print_usage(const char *program);
void help_print_version(const char *program);
void help_print_chardevs(void);

/* The types of objects, or the properties of those of `type`; fails when there is no such type.
 * NULL: all types. */
bool help_print_objects(const char *type, GError **error);

#endif
