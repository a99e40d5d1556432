/* SPDX-License-Identifier: MIT */
/*
 * Holding events back while a command runs (monitor/events.h says why). Main thread; not nested.
 */
#ifndef MERINO_MONITOR_EVENTS_INTERNAL_H
#define MERINO_MONITOR_EVENTS_INTERNAL_H

void qmp_events_hold(void);

/* Send what was held, and hold no more. */
void qmp_events_release(void);

#endif
