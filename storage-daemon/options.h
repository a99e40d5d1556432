/* SPDX-License-Identifier: MIT */
/*
 * The command line of merino-storage-daemon, which is qemu-storage-daemon's.
 *
 * It is looked at twice: the first pass checks its form and takes what concerns the process; the
 * second makes what the other options describe, in their order, so that an option may refer to
 * what stands before it.
 */
#ifndef MERINO_STORAGE_DAEMON_OPTIONS_H
#define MERINO_STORAGE_DAEMON_OPTIONS_H

#include <stdbool.h>

typedef struct ProcessOptions {
    const char *pidfile; /* NULL: none */
    bool daemonize;
} ProcessOptions;

/* The first pass. --help and --version print and exit, as does an error. */
ProcessOptions options_check(int argc, char **argv);

/* The second pass; false once an error is printed. Options that ask for help print and exit. */
bool options_apply(int argc, char **argv, const ProcessOptions *process);

#endif
