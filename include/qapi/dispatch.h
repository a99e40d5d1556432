/* SPDX-License-Identifier: MIT */
/*
 * From the name of a command and its arguments in JSON to its result in JSON.
 *
 * The table of commands is generated (qapi-commands.c, which refers to every handler and so is
 * linked where the handlers are). What surrounds a command in a message - execute, id, whether
 * `arguments` is an object at all - is the session's business.
 *
 * Calling context: the main thread, where handlers run.
 */
#ifndef MERINO_QAPI_DISPATCH_H
#define MERINO_QAPI_DISPATCH_H

#include "qapi/type.h"

typedef struct QapiCommand {
    const char *name;
    /* Decode, call the handler, encode. `arguments` NULL: there are none. */
    bool (*run)(const json_t *arguments, json_t **ret, GError **error);
} QapiCommand;

/* All commands of the schema in its order; the last one has no name. */
extern const QapiCommand qapi_commands[];

/* NULL when there is none of that name. */
const QapiCommand *qapi_command_find(const QapiCommand *commands, const char *name);

/* Run one command: true and a new reference in `*ret`, or false and an error, whose class is
 * CommandNotFound when there is no such command. */
bool qapi_command_run(const QapiCommand *commands, const char *name, const json_t *arguments,
                      json_t **ret, GError **error);

/* What QMP calls an error: {"class": ..., "desc": ...}, without the hints. */
json_t *qapi_error_encode(const GError *error);

/* For commands without arguments: fails if there are any. */
bool qapi_no_arguments(const json_t *arguments, GError **error);

#endif
