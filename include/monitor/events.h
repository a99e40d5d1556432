/* SPDX-License-Identifier: MIT */
/*
 * Events: what the program tells its QMP clients of its own accord.
 *
 * The generated qapi_event_send_*() functions end in the sink that qmp_events_init() sets. An event
 * goes to every session that has finished its negotiation.
 *
 * A command's events are held until its reply has been sent, so that a client reads first that the
 * command was accepted and then what came of it. Some commands are known for the other
 * order: nbd-server-stop answers when the exports are gone, and commands that start a job answer
 * when it runs. Their handlers call qmp_events_flush().
 */
#ifndef MERINO_MONITOR_EVENTS_H
#define MERINO_MONITOR_EVENTS_H

/* Make QMP sessions the place where events go. Main thread, once, early. */
void qmp_events_init(void);

/* Send the events held so far, before the reply. In a command handler. */
void qmp_events_flush(void);

#endif
