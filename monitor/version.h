/* SPDX-License-Identifier: MIT */
/*
 * What Merino says it is. Clients look at the numbers to know what they may ask for, so these are
 * those of the QEMU whose behaviour Merino keeps to; the package tells which program it really is.
 */
#ifndef MERINO_MONITOR_VERSION_H
#define MERINO_MONITOR_VERSION_H

#include <jansson.h>

#define QEMU_VERSION_MAJOR 7
#define QEMU_VERSION_MINOR 2
#define QEMU_VERSION_MICRO 22
#define MERINO_PACKAGE     "Merino " MERINO_VERSION

/* The greeting, {"QMP": ...}. */
json_t *qmp_greeting(void);

#endif
