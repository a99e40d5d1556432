/* SPDX-License-Identifier: MIT */
/*
 * Secrets: where they come from, and which are refused.
 */
#include "io-harness.h"
#include "net/secret.h"

/* What the secret that is made of these holds, or why it cannot be had. */
static char *outcome(SecretProperties properties)
{
    GError *error = NULL;
    char *text = NULL;

    if (secret_add("s", &properties, &error)) {
        text = secret_copy_text("s", &error);
        g_assert_true(secret_delete("s", NULL));
    }
    if (error) {
        text = g_strdup_printf("! %s", error->message);
        g_error_free(error);
    }
    return text;
}

static SecretProperties base64(const char *text)
{
    return (SecretProperties){ .has_format = true,
                               .format = Q_CRYPTO_SECRET_FORMAT_BASE64,
                               .data = (char *)text };
}

static void test_data(void)
{
    char *text = (char *)"open sesame";

    assert_text(outcome((SecretProperties){ .data = text }), "open sesame");
    assert_text(outcome((SecretProperties){ .data = (char *)"" }), "");
    assert_text(outcome((SecretProperties){ 0 }), "! Either 'file' or 'data' must be provided");
    assert_text(outcome((SecretProperties){ .data = text, .file = text }),
                "! 'file' and 'data' are mutually exclusive");
}

static void test_file(void)
{
    g_autofree char *path = temp_path("secret");
    g_autofree char *missing = NULL;
    SecretProperties properties = { .file = path };

    missing =
        g_strdup_printf("! Unable to read %s: Failed to open file \342\200\234%s\342\200\235: "
                        "No such file or directory",
                        path, path);
    assert_text(outcome(properties), missing);
    g_assert_true(g_file_set_contents(path, "open sesame\n", -1, NULL));
    assert_text(outcome(properties), "open sesame\n");
}

static void test_base64(void)
{
    assert_text(outcome(base64("b3BlbiBzZXNhbWU=")), "open sesame");
    assert_text(outcome(base64("b3Blbi\nBzZXNhbWU=\n")), "open sesame");
    assert_text(outcome(base64("")), "");
    assert_text(outcome(base64("%%%")), "! Base64 data contains invalid characters");
    assert_text(outcome(base64("/w==")), "! Data from secret s is not valid UTF-8");
    assert_text(outcome(base64("AHM=")), "! Data from secret s is not valid UTF-8");
}

static void test_unknown(void)
{
    g_autoptr(GError) none = NULL, gone = NULL;

    g_assert_null(secret_copy_text("s", &none));
    g_assert_cmpstr(none->message, ==, "No secret with id 's'");
    g_assert_false(secret_delete("s", &gone));
    g_assert_cmpstr(gone->message, ==, "object 's' not found");
}

int main(int argc, char **argv)
{
    io_harness_init(&argc, &argv, false);
    g_test_add_func("/secret/data", test_data);
    g_test_add_func("/secret/file", test_file);
    g_test_add_func("/secret/base64", test_base64);
    g_test_add_func("/secret/unknown", test_unknown);
    return io_harness_run();
}
