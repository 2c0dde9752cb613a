# The server on a CPU, from the wheel, as a user without rights:
#   docker build -t stage1 . && docker run --rm -p 8000:8000 -v "$PWD/runs/latest/bundle:/bundle:ro" stage1
FROM python:3.11-slim AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim
# torch for CPUs; a mirror of it, or PyPI for torch with CUDA: --build-arg TORCH_INDEX=…
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" -c /wheels/constraints.txt torch torchvision \
 && pip install --no-cache-dir -c /wheels/constraints.txt "$(ls /wheels/*.whl)[serve,onnx]" \
 && rm -r /wheels \
 && useradd --uid 10001 --no-create-home stage1
USER 10001
EXPOSE 8000
# stage1 is process 1: it gets SIGTERM itself, answers what is in flight and ends with 0
ENTRYPOINT ["stage1", "serve"]
CMD ["/bundle", "--host", "0.0.0.0"]
