// Answers as OpenAI's chunks and completions. Two fields are our own: "timings" and "images".
#include <math.h>
#include <string.h>

#include "apps/image_chat/chat.h"

static void put_head(chat_job *job, const char *object) {
    out_format(&job->out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", job->id,
               object, (long long)job->created);
    out_string(&job->out, job->server->info.name);
}

static const char *finish_reason(lv_finish finish) {
    return finish == LV_FINISH_LENGTH || finish == LV_FINISH_CONTEXT ? "length" : "stop";
}

// --- log probabilities ---------------------------------------------------------------------------

// OpenAI's stand-in for what has no probability at all.
static double logprob_of(float value) {
    return isfinite(value) && value > -9999.0f ? (double)value : -9999.0;
}

// "token": ..., "logprob": ..., "bytes": [...]
static void put_token(chat_job *job, int32_t id, float logprob) {
    char text[256];
    size_t n = lv_model_token(job->server->model, id, text, sizeof text);
    n = n < sizeof text ? n : sizeof text;
    out_put(&job->out, "\"token\":");
    out_string_n(&job->out, text, n);
    out_format(&job->out, ",\"logprob\":%.6g,\"bytes\":[", logprob_of(logprob));
    for (size_t i = 0; i < n; i++) {
        out_format(&job->out, i ? ",%u" : "%u", (unsigned char)text[i]);
    }
    out_put(&job->out, "]");
}

static void put_logprobs(chat_job *job, const lv_token *tokens, int n_tokens) {
    const lv_params *params = &job->request.params;
    if (!params->logprobs) {
        out_put(&job->out, ",\"logprobs\":null");
        return;
    }
    out_put(&job->out, ",\"logprobs\":{\"content\":[");
    for (int i = 0; i < n_tokens; i++) {
        out_put(&job->out, i ? ",{" : "{");
        put_token(job, tokens[i].id, tokens[i].logprob);
        out_put(&job->out, ",\"top_logprobs\":[");
        for (int j = 0; j < params->top_logprobs; j++) {
            out_put(&job->out, j ? ",{" : "{");
            put_token(job, tokens[i].top[j].id, tokens[i].top[j].logprob);
            out_put(&job->out, "}");
        }
        out_put(&job->out, "]}");
    }
    out_put(&job->out, "],\"refusal\":null}");
}

// --- numbers -------------------------------------------------------------------------------------

static void put_usage(chat_job *job) {
    const lv_answer *first = &job->choices[0].answer;
    int n_tokens = 0;
    for (int i = 0; i < job->request.n_choices; i++) {
        n_tokens += job->choices[i].answer.n_tokens;
    }
    out_format(&job->out,
               "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%d,\"image_tokens\":%d}}",
               first->n_prompt_tokens, n_tokens, first->n_prompt_tokens + n_tokens,
               first->n_reused_tokens, first->n_image_tokens);
}

static void put_timings(chat_job *job, const lv_answer *answer) {
    out_format(&job->out,
               ",\"timings\":{\"queue_ms\":%.2f,\"encode_ms\":%.2f,\"prefill_ms\":%.2f,"
               "\"decode_ms\":%.2f,\"first_token_ms\":%.2f}",
               answer->queue_ms, answer->encode_ms, answer->prefill_ms, answer->decode_ms,
               answer->first_token_ms);
    out_put(&job->out, ",\"images\":[");
    for (int i = 0; i < job->request.n_pictures; i++) {
        const lv_picture_info info = chat_picture_info(&job->request.pictures[i]);
        out_format(
            &job->out, "%s{\"width\":%d,\"height\":%d,\"tiles\":%d,\"tile_size\":%d,\"tokens\":%d}",
            i ? "," : "", info.width, info.height, info.n_tiles, info.tile_size, info.n_tokens);
    }
    out_put(&job->out, "]");
}

// Of several answers the one that the client waited for.
static const lv_answer *slowest(const chat_job *job) {
    const lv_answer *worst = &job->choices[0].answer;
    for (int i = 1; i < job->request.n_choices; i++) {
        const lv_answer *a = &job->choices[i].answer;
        if (a->queue_ms + a->prefill_ms + a->decode_ms >
            worst->queue_ms + worst->prefill_ms + worst->decode_ms) {
            worst = a;
        }
    }
    return worst;
}

// --- chunks --------------------------------------------------------------------------------------

static void open_chunk(chat_job *job) {
    out_put(&job->out, "data: ");
    put_head(job, "chat.completion.chunk");
}

static void close_chunk(chat_job *job) {
    out_put(&job->out, job->request.include_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

void write_first_chunk(chat_job *job, const choice *c) {
    open_chunk(job);
    out_format(&job->out,
               ",\"choices\":[{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
               "\"logprobs\":null,\"finish_reason\":null}]",
               c->index);
    close_chunk(job);
}

void write_piece_chunk(chat_job *job, const choice *c, const lv_piece *piece) {
    open_chunk(job);
    out_format(&job->out, ",\"choices\":[{\"index\":%d,\"delta\":{\"content\":", c->index);
    out_string(&job->out, piece->text);
    out_put(&job->out, "}");
    put_logprobs(job, piece->tokens, piece->n_tokens);
    out_put(&job->out, ",\"finish_reason\":null}]");
    close_chunk(job);
}

void write_finish_chunk(chat_job *job, const choice *c) {
    open_chunk(job);
    out_format(&job->out,
               ",\"choices\":[{\"index\":%d,\"delta\":{},\"logprobs\":null,\"finish_reason\":"
               "\"%s\"}]",
               c->index, finish_reason(c->answer.finish));
    put_timings(job, &c->answer);
    close_chunk(job);
}

void write_stream_error(chat_job *job) {
    out_put(&job->out, "data: ");
    error_json(&job->error, &job->out);
    out_put(&job->out, "\n\ndata: [DONE]\n\n");
}

void write_stream_end(chat_job *job) {
    if (job->request.include_usage) {
        open_chunk(job);
        out_put(&job->out, ",\"choices\":[],");
        put_usage(job);
        put_timings(job, slowest(job));
        out_put(&job->out, "}\n\n");
    }
    out_put(&job->out, "data: [DONE]\n\n");
}

// --- completions ---------------------------------------------------------------------------------

void write_whole(chat_job *job) {
    put_head(job, "chat.completion");
    out_put(&job->out, ",\"choices\":[");
    for (int i = 0; i < job->request.n_choices; i++) {
        const lv_answer *answer = &job->choices[i].answer;
        out_format(&job->out,
                   "%s{\"index\":%d,\"message\":{\"role\":\"assistant\",\"content\":", i ? "," : "",
                   i);
        out_string(&job->out, answer->text ? answer->text : "");
        out_put(&job->out, ",\"refusal\":null}");
        put_logprobs(job, answer->tokens, answer->n_logprobs);
        out_format(&job->out, ",\"finish_reason\":\"%s\"}", finish_reason(answer->finish));
    }
    out_put(&job->out, "],");
    put_usage(job);
    put_timings(job, slowest(job));
    out_put(&job->out, "}");
}
