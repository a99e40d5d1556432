/* SPDX-License-Identifier: MIT */
/*
 * Options of new images, as tools take them: `-o name=value,...`.
 *
 * Which there are is told by the format and by the protocol of the file name together. A name alone
 * means "on", one with "no" in front "off"; a later value wins; two commas are one in a value.
 */
#ifndef MERINO_TOOLS_CREATE_OPTIONS_H
#define MERINO_TOOLS_CREATE_OPTIONS_H

#include "qapi/qapi-types.h"

typedef enum CreateOptionKind {
    CREATE_OPTION_STR,
    CREATE_OPTION_BOOL,
    CREATE_OPTION_SIZE,
    CREATE_OPTION_NUM,
} CreateOptionKind;

typedef struct CreateOption {
    const char *name;
    CreateOptionKind kind;
    const char *help;  /* NULL: known only so that it can be refused in words */
    const char *value; /* by default; NULL: none */
} CreateOption;

/* The options of a driver, ending without name; NULL: it makes no images. */
const CreateOption *create_options_of(const char *driver);
/* Those that can be changed later. */
const CreateOption *amend_options_of(const char *driver);

/* A set of options with the values that were given. */
typedef struct CreateValues CreateValues;

/* Of one or two drivers; of a name that both have, the first's counts. */
CreateValues *create_values_new(const CreateOption *first, const CreateOption *second);
void create_values_free(CreateValues *values); /* NULL ok */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CreateValues, create_values_free)

bool create_values_parse(CreateValues *values, const char *text, GError **error);
/* Set one to a text of its kind. False when there is no such option, or the text is not right. */
bool create_values_set(CreateValues *values, const char *name, const char *text, GError **error);
bool create_values_has_option(const CreateValues *values, const char *name);
/* What was given, or the default; NULL: neither. */
const char *create_values_get(const CreateValues *values, const char *name);
/* The same as a number, `otherwise` when there is none; of switches, 0 and 1. */
int64_t create_values_number(const CreateValues *values, const char *name, int64_t otherwise);

/* The first that is known only to be refused, and was given; a switch that is off does not count.
 * NULL: none. */
const char *create_values_unsupported(const CreateValues *values);

/* " name=value" for each that has one, in the drivers' order. */
void create_values_print(const CreateValues *values);
/* One line an option, sorted. */
void create_values_print_help(const CreateValues *values);

/* Whether an option list asks for help. */
bool create_options_ask_help(const char *text);

#endif
