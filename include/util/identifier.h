/* SPDX-License-Identifier: MIT */
/*
 * Ids that users give to objects, exports and jobs.
 */
#ifndef MERINO_UTIL_IDENTIFIER_H
#define MERINO_UTIL_IDENTIFIER_H

#include "util/error.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>

/* A letter, then letters, digits, '-', '.', '_'. */
static inline bool identifier_is_valid(const char *id)
{
    return g_ascii_isalpha(id[0]) &&
           strspn(id, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._") == strlen(id);
}

/* The same, with an error for whoever gave it as the parameter 'id'. */
static inline bool identifier_check(const char *id, GError **error)
{
    if (identifier_is_valid(id)) {
        return true;
    }
    merino_error(error, "Parameter 'id' expects an identifier");
    merino_error_hint(error, "Identifiers consist of letters, digits, '-', '.', '_', "
                             "starting with a letter.");
    return false;
}

#endif
