// --chat: questions and answers in the terminal, or from a script on standard input.
#include "describe.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct chat_state {
    describe_app *app;
    lv_message *messages; // texts owned; pictures: stretches of `pictures`
    int n_messages, capacity;
    lv_picture **pictures; // of the whole conversation, in order
    int n_pictures;
    int n_shown;  // of them, those that a question has shown already
    int n_failed; // pictures and questions
    bool asks;    // standard input is a terminal: prompts and hints are shown
} chat_state;

static const char help_text[] = "  /image PATH|URL   show a picture with the next question\n"
                                "  /reset            forget the conversation and its pictures\n"
                                "  /help             this list\n"
                                "  /quit             leave (also Ctrl-D); Ctrl-C stops an answer\n";

// `text` is copied. False without memory.
static bool add_message(chat_state *chat, const char *role, const char *text) {
    if (chat->n_messages == chat->capacity) {
        int capacity = chat->capacity ? 2 * chat->capacity : 16;
        lv_message *grown = realloc(chat->messages, (size_t)capacity * sizeof *grown);
        if (!grown) {
            return false;
        }
        chat->messages = grown;
        chat->capacity = capacity;
    }
    char *copy = strdup(text);
    if (copy) {
        chat->messages[chat->n_messages++] = (lv_message){.role = role, .text = copy};
    }
    return copy != NULL;
}

static void drop_message(chat_state *chat) {
    free((char *)chat->messages[--chat->n_messages].text);
}

static void reset(chat_state *chat) {
    while (chat->n_messages > 0) {
        drop_message(chat);
    }
    for (int i = 0; i < chat->n_pictures; i++) {
        lv_picture_free(chat->pictures[i]);
    }
    chat->n_pictures = chat->n_shown = 0;
}

static void show(chat_state *chat, const describe_input *input) {
    interrupt_mode(INTERRUPT_STOPS);
    lv_picture *picture = answer_load(chat->app, input);
    lv_picture **grown =
        picture ? realloc(chat->pictures, (size_t)(chat->n_pictures + 1) * sizeof *grown) : NULL;
    if (!grown) {
        lv_picture_free(picture);
        chat->n_failed++;
        return;
    }
    chat->pictures = grown;
    chat->pictures[chat->n_pictures++] = picture;
    lv_picture_info info = lv_picture_describe(picture);
    note("%s: %d x %d, shown with the next question", input->label, info.width, info.height);
}

static void show_named(chat_state *chat, const char *source) {
    input_list list = {0};
    if (input_add(&list, source, strlen(source))) {
        show(chat, list.items);
    } else {
        chat->n_failed++;
    }
    inputs_free(&list);
}

// The pictures move while their list grows: each message's stretch is laid anew before an answer.
static void lay_pictures(chat_state *chat) {
    int at = 0;
    for (int i = 0; i < chat->n_messages; i++) {
        chat->messages[i].pictures = chat->pictures ? chat->pictures + at : NULL;
        at += chat->messages[i].n_pictures;
    }
}

// A question that fails is taken back. EXIT_MODEL where none can follow, else EXIT_DONE.
static int ask(chat_state *chat, const char *question) {
    const describe_options *options = chat->app->options;
    if (chat->n_messages == 0 && options->system && !add_message(chat, "system", options->system)) {
        return EXIT_MODEL;
    }
    if (!add_message(chat, "user", question)) {
        return EXIT_MODEL;
    }
    chat->messages[chat->n_messages - 1].n_pictures = chat->n_pictures - chat->n_shown;
    lay_pictures(chat);

    lv_answer answer = {0};
    int result = EXIT_DONE;
    interrupt_mode(INTERRUPT_STOPS);
    lv_status status = lv_engine_answer(chat->app->engine, chat->messages, chat->n_messages,
                                        &options->params, answer_on_text, NULL, &answer);
    if (status != LV_OK) {
        result = answer_failed("chat", status) == EXIT_MODEL ? EXIT_MODEL : EXIT_DONE;
        if (status == LV_ELIMIT) {
            note("/reset starts a new conversation");
        }
        drop_message(chat);
        chat->n_failed++;
    } else {
        put_text("\n");
        chat->n_shown = chat->n_pictures;
        if (answer.finish == LV_FINISH_CONTEXT) {
            note("the conversation is full (%d tokens): /reset starts a new one",
                 chat->app->info.session_len);
        }
        if (options->verbose) {
            report_answer("chat", NULL, 0, &answer);
        }
        result = add_message(chat, "assistant", answer.text) ? result : EXIT_MODEL;
    }
    lv_answer_free(&answer);
    return result;
}

typedef enum next { GO_ON, LEAVE } next;

static next command(chat_state *chat, char *line) {
    char *argument = line + strcspn(line, " \t");
    if (*argument) {
        *argument++ = 0;
        argument += strspn(argument, " \t");
    }
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit")) {
        return LEAVE;
    }
    if (!strcmp(line, "/reset")) {
        reset(chat);
        note("forgotten: /image shows a new picture");
    } else if (!strcmp(line, "/image") && *argument) {
        show_named(chat, argument);
    } else if (!strcmp(line, "/image")) {
        note("/image wants a path or URL after it");
    } else if (!strcmp(line, "/help") || !strcmp(line, "/?")) {
        fputs(help_text, stderr);
    } else {
        note("%s: no such command; /help lists them", line);
    }
    return GO_ON;
}

static ssize_t read_line(const chat_state *chat, char **line, size_t *capacity) {
    interrupt_mode(chat->asks ? INTERRUPT_PROMPTS : INTERRUPT_LEAVES);
    if (chat->asks) {
        fputs("> ", stderr);
    }
    ssize_t n = getline(line, capacity, stdin);
    while (n > 0 && isspace((unsigned char)(*line)[n - 1])) {
        (*line)[--n] = 0;
    }
    return n;
}

int chat_run(describe_app *app, const input_list *inputs) {
    chat_state chat = {.app = app, .asks = isatty(STDIN_FILENO) && !app->options->quiet};
    int result = EXIT_DONE;
    char *line = NULL;
    size_t capacity = 0;
    for (int i = 0; i < inputs->n; i++) {
        show(&chat, &inputs->items[i]);
    }
    if (chat.asks) {
        fputs("Ask about the picture; /help lists what else there is, Ctrl-D leaves.\n", stderr);
    }
    if (app->options->prompt) {
        result = ask(&chat, app->options->prompt);
    }
    while (result != EXIT_MODEL && !put_failed() && read_line(&chat, &line, &capacity) >= 0) {
        char *text = line + strspn(line, " \t");
        if (*text == '/') {
            if (command(&chat, text) == LEAVE) {
                break;
            }
        } else if (*text) {
            result = ask(&chat, text);
        }
    }
    if (chat.asks && feof(stdin)) {
        fputc('\n', stderr);
    }
    result = put_failed() || (result == EXIT_DONE && chat.n_failed) ? EXIT_SOME_FAILED : result;
    reset(&chat);
    free(chat.messages);
    free(chat.pictures);
    free(line);
    return result;
}
