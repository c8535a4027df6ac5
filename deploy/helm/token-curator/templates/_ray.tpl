{{/* Parts that every pod of the Ray cluster has. Argument: (dict "root" $ "group" GROUP) */}}

{{- define "curator.rayImage" -}}
{{- $kind := "cpu" -}}
{{- range $name, $group := .Values.ray.workerGroups -}}
{{- if and $group.enabled (index $group.resources.limits "nvidia.com/gpu") -}}{{- $kind = "gpu" -}}{{- end -}}
{{- end -}}
{{- $image := .Values.ray.image -}}
{{- $repository := default (printf "token-curator/worker-%s" $kind) $image.repository -}}
{{- include "curator.image" (dict "root" . "image" (dict "repository" $repository "tag" $image.tag "digest" $image.digest)) -}}
{{- end -}}

{{- define "curator.rayContainer" -}}
image: {{ include "curator.rayImage" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
env:
  - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
  {{- if .root.Values.ray.autoscaling.enabled }}
  - {name: CURATOR_GROWS_TO, value: {{ include "curator.growsTo" .root | quote }}}
  {{- end }}
  {{- range .root.Values.env }}
  - {{ toJson . }}
  {{- end }}
resources: {{ toJson .group.resources }}
securityContext: {{- include "curator.containerSecurity" .root | nindent 2 }}
volumeMounts: {{- include "curator.mounts" .root | nindent 2 }}
startupProbe: {{- include "curator.raylet" 60 | nindent 2 }}
livenessProbe: {{- include "curator.raylet" 24 | nindent 2 }}
readinessProbe: {{- include "curator.raylet" 3 | nindent 2 }}
{{- end -}}

{{/* The raylet's health, from its agent. KubeRay's own probe calls wget, which the images do not have. */}}
{{- define "curator.raylet" -}}
httpGet: {path: /api/local_raylet_healthz, port: 52365}
periodSeconds: 5
timeoutSeconds: 5
failureThreshold: {{ . }}
{{- end -}}

{{- define "curator.rayPod" -}}
enableServiceLinks: false
securityContext: {{- include "curator.podSecurity" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- include "curator.pullSecrets" $.root | nindent 2 }}
{{- end }}
{{- with .group.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
volumes: {{- include "curator.volumes" .root | nindent 2 }}
{{- end -}}

{{/* The head's affinity: its own, and away from every node that is marked as spot. */}}
{{- define "curator.headAffinity" -}}
{{- $own := deepCopy .Values.ray.head.affinity -}}
{{- $avoid := list -}}
{{- range $key, $value := .Values.ray.spot.nodeSelector -}}
{{- $avoid = append $avoid (dict "key" $key "operator" "NotIn" "values" (list $value)) -}}
{{- end -}}
{{- if $avoid -}}
{{- $node := default (dict) $own.nodeAffinity -}}
{{- $required := default (dict) $node.requiredDuringSchedulingIgnoredDuringExecution -}}
{{- $terms := list -}}
{{- range default (list (dict)) $required.nodeSelectorTerms -}}
{{- $terms = append $terms (set . "matchExpressions" (concat (default (list) .matchExpressions) $avoid)) -}}
{{- end -}}
{{- $_ := set $required "nodeSelectorTerms" $terms -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" $required -}}
{{- $_ := set $own "nodeAffinity" $node -}}
{{- end -}}
{{- toJson $own -}}
{{- end -}}

{{/* What all groups together may have: drivers ask for as many workers, which is what makes the cluster grow. */}}
{{- define "curator.growsTo" -}}
{{- $total := dict "CPU" 0 "GPU" 0 -}}
{{- range $name, $group := .Values.ray.workerGroups -}}
{{- if $group.enabled -}}
{{- $count := int64 $group.maxReplicas -}}
{{- $cpu := toString (default $group.resources.requests.cpu $group.resources.limits.cpu) -}}
{{- /* whole cores, rounded up as KubeRay does */ -}}
{{- $cores := hasSuffix "m" $cpu | ternary (div (add 999 (int64 (trimSuffix "m" $cpu))) 1000) (int64 (ceil (float64 $cpu))) -}}
{{- $gpus := int64 (toString (default 0 (index $group.resources.limits "nvidia.com/gpu"))) -}}
{{- $_ := set $total "CPU" (add (get $total "CPU") (mul $count $cores)) -}}
{{- $_ := set $total "GPU" (add (get $total "GPU") (mul $count $gpus)) -}}
{{- end -}}
{{- end -}}
{{- toJson $total -}}
{{- end -}}
