/* SPDX-License-Identifier: MIT */
/*
 * Ids that users give to objects, exports and jobs.
 */
#ifndef MERINO_UTIL_IDENTIFIER_H
#define MERINO_UTIL_IDENTIFIER_H

#include <glib.h>
#include <stdbool.h>
#include <string.h>

/* A letter, then letters, digits, '-', '.', '_'. */
static inline bool identifier_is_valid(const char *id)
{
    return g_ascii_isalpha(id[0]) &&
           strspn(id, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "-._") == strlen(id);
}

#endif
