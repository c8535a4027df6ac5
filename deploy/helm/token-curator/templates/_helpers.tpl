{{/* Values are written as JSON, which is YAML: toYaml turns 1000000 into 1e+06, which Kubernetes refuses. */}}

{{- define "curator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 49 characters: KubeRay allows 53 for a cluster's name, which is this one and "-ray". */}}
{{- define "curator.fullname" -}}
{{- $name := include "curator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 49 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 49 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 49 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "curator.ray" -}}{{ include "curator.fullname" . }}-ray{{- end -}}
{{- define "curator.claim" -}}{{ default (printf "%s-data" (include "curator.fullname" .)) .Values.persistence.existingClaim }}{{- end -}}
{{- define "curator.tokenSecret" -}}{{ default (include "curator.ray" .) .Values.ray.auth.existingSecret }}{{- end -}}

{{- define "curator.selector" -}}
app.kubernetes.io/name: {{ include "curator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "curator.labels" -}}
{{ include "curator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's name: (dict "root" $ "image" .Values.image) */}}
{{- define "curator.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest | quote -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) | quote -}}
{{- end -}}
{{- end -}}

{{- define "curator.pullSecrets" -}}
{{- range .Values.image.pullSecrets }}
- name: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "curator.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.podSecurity.user }}
runAsGroup: {{ int64 .Values.podSecurity.group }}
fsGroup: {{ int64 .Values.podSecurity.group }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "curator.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "curator.volumes" -}}
- name: data
  persistentVolumeClaim: {claimName: {{ include "curator.claim" . | quote }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit | quote }}}
{{- end -}}

{{- define "curator.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{/* The settings file. JSON's strings, numbers and lists are TOML's; integers stay integers. */}}
{{- define "curator.settings" -}}
{{- $own := dict "data_dir" "/data" "host" "0.0.0.0" "port" 8000 -}}
{{- if .Values.ray.enabled -}}
{{- $_ := set $own "launcher" "ray" -}}
{{- $_ := set $own "ray_address" (printf "http://%s-head-svc:8265" (include "curator.ray" .)) -}}
{{- end -}}
{{- range $settings := list .Values.settings $own }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
