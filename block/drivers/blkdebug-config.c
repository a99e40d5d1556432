/* SPDX-License-Identifier: MIT */
/*
 * Rules from a file:
 *
 *     # a comment
 *     [inject-error]
 *     event = "read_aio"
 *     errno = "5"
 *
 *     [set-state]
 *     event = "flush_to_disk"
 *     new_state = "2"
 *
 * Read as QEMU reads it, oddities included: a line without a value in quotes is an option with an
 * empty value.
 */
#include "blkdebug.h"
#include "util/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define NAME_MAX_BYTES  63
#define VALUE_MAX_BYTES 1023
#define LINE_MAX_BYTES  1024

typedef struct Section {
    bool is_state;  /* [set-state], else [inject-error] */
    bool has_event; /* the only option that must be there */
    BlkdebugInjectErrorOptions error;
    BlkdebugSetStateOptions state;
} Section;

/* --- values --- */

static bool parse_number(const char *name, const char *text, int64_t *ret, GError **error)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno == ERANGE) {
        merino_error(error, "Value '%s' is too large for parameter '%s'", text, name);
        return false;
    }
    if (end == text || *end) {
        merino_error(error, "Parameter '%s' expects a number", name);
        return false;
    }
    *ret = (int64_t)value;
    return true;
}

static bool parse_switch(const char *name, const char *text, bool *ret, GError **error)
{
    static const char *const on[] = { "on", "yes", "true", "y", NULL };
    static const char *const off[] = { "off", "no", "false", "n", NULL };

    *ret = g_strv_contains((const gchar *const *)on, text);
    if (!*ret && !g_strv_contains((const gchar *const *)off, text)) {
        merino_error(error, "Parameter '%s' expects 'on' or 'off'", name);
        return false;
    }
    return true;
}

static bool bad_value(const char *text, GError **error)
{
    merino_error(error, "invalid parameter value: %s", text);
    return false;
}

static bool set_error_option(BlkdebugInjectErrorOptions *options, const char *name,
                             const char *text, GError **error)
{
    if (strcmp(name, "iotype") == 0) {
        options->has_iotype = true;
        return BlkdebugIOType_parse(text, &options->iotype) || bad_value(text, error);
    }
    if (strcmp(name, "errno") == 0) {
        options->has_errno = true;
        return parse_number(name, text, &options->q_errno, error);
    }
    if (strcmp(name, "sector") == 0) {
        options->has_sector = true;
        return parse_number(name, text, &options->sector, error);
    }
    if (strcmp(name, "once") == 0) {
        options->has_once = true;
        return parse_switch(name, text, &options->once, error);
    }
    if (strcmp(name, "immediately") == 0) {
        options->has_immediately = true;
        return parse_switch(name, text, &options->immediately, error);
    }
    merino_error(error, "Invalid parameter '%s'", name);
    return false;
}

static bool set_option(Section *section, const char *name, const char *text, GError **error)
{
    if (strcmp(name, "event") == 0) {
        section->has_event = true;
        if (!BlkdebugEvent_parse(text, &section->error.event)) {
            return bad_value(text, error);
        }
        section->state.event = section->error.event;
        return true;
    }
    if (strcmp(name, "state") == 0) {
        section->error.has_state = section->state.has_state = true;
        if (!parse_number(name, text, &section->error.state, error)) {
            return false;
        }
        section->state.state = section->error.state;
        return true;
    }
    if (section->is_state && strcmp(name, "new_state") == 0) {
        return parse_number(name, text, &section->state.new_state, error);
    }
    if (section->is_state) {
        merino_error(error, "Invalid parameter '%s'", name);
        return false;
    }
    return set_error_option(&section->error, name, text, error);
}

/* --- lines --- */

static bool section_begin(Section *section, const char *name, GError **error)
{
    *section = (Section){ .is_state = strcmp(name, "set-state") == 0 };
    if (!section->is_state && strcmp(name, "inject-error") != 0) {
        merino_error(error, "There is no option group '%s'", name);
        return false;
    }
    return true;
}

static bool section_end(const Section *section, BlkdebugRules *rules, GError **error)
{
    if (!section->has_event) {
        merino_error(error, "Missing event name for rule");
        return false;
    }
    if (section->is_state) {
        blkdebug_add_state(rules, &section->state);
    } else {
        blkdebug_add_error(rules, &section->error);
    }
    return true;
}

G_STATIC_ASSERT(NAME_MAX_BYTES == 63 && VALUE_MAX_BYTES == 1023); /* as in the formats below */

static bool read_line(const char *line, Section *section, bool *in_section, BlkdebugRules *rules,
                      GError **error)
{
    char name[NAME_MAX_BYTES + 1], value[VALUE_MAX_BYTES + 1] = "";

    if (line[0] == '#' || line[0] == '\n') {
        return true;
    }
    if (sscanf(line, "[%63[^] \"]", name) == 1) {
        bool ok = !*in_section || section_end(section, rules, error);

        *in_section = true;
        return ok && section_begin(section, name, error);
    }
    if (sscanf(line, " %63s = \"%1023[^\"]\"", name, value) < 1) {
        merino_error(error, "parse error");
        return false;
    }
    if (!*in_section) {
        merino_error(error, "no group defined");
        return false;
    }
    return set_option(section, name, value, error);
}

static bool read_file(FILE *file, BlkdebugRules *rules, GError **error)
{
    char line[LINE_MAX_BYTES];
    bool in_section = false;
    Section section;

    while (fgets(line, sizeof(line), file)) {
        if (!read_line(line, &section, &in_section, rules, error)) {
            return false;
        }
    }
    if (ferror(file)) {
        merino_error_errno(error, errno, "Cannot read config file");
        return false;
    }
    return !in_section || section_end(&section, rules, error);
}

bool blkdebug_read_config(BlkdebugRules *rules, const char *path, GError **error)
{
    FILE *file = fopen(path, "re");
    bool ok;

    if (!file) {
        merino_error_errno(error, errno, "Could not read blkdebug config file");
        return false;
    }
    ok = read_file(file, rules, error);
    fclose(file);
    return ok;
}
