/* SPDX-License-Identifier: MIT */
/*
 * Monitors: QMP offered to clients over character devices (monitor/chardev.h).
 *
 * A program initialises once, adds chardevs and monitors, runs GLib's main loop, and at the end
 * begins the shutdown, closes what it serves, and closes the monitors. Events that the closing
 * causes still reach the clients. Main thread.
 */
#ifndef MERINO_MONITOR_MONITOR_H
#define MERINO_MONITOR_MONITOR_H

#include "qapi/qapi-types.h"

typedef struct MonitorProgram {
    /* A client wants the program to end; called within the command. */
    void (*quit)(void);
    /* Whether the beginning of a shutdown is told by the event SHUTDOWN, as emulators do and
     * qemu-storage-daemon does not. */
    bool announces_shutdown;
} MonitorProgram;

/* `program` must stay valid. */
void monitor_init(const MonitorProgram *program);

bool monitor_add(const MonitorOptions *options, GError **error);

/* From now on no command is taken. A second call does nothing. */
void monitor_begin_shutdown(ShutdownCause cause);

/* End all sessions, and close all character devices. Clients that read get what is still to be
 * sent; those that do not keep the program for a second at most, all together. */
void monitor_close_all(void);

#endif
